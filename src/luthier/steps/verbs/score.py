"""Score: log-probability, entropy and reward of answers under a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from luthier.parts import lazy
from luthier.recipe.steps import DATA, NEWEST
from luthier.run_folder import read_jsonl
from luthier.steps.verbs.base import Blocks, Data, From, Verb

if TYPE_CHECKING:
    from luthier.recipe import Stage
    from luthier.steps.work import Work

workspace = lazy("luthier.modalities.base")
policy = lazy("luthier.models.policy")
scores = lazy("luthier.steps.scores")


class Score(Verb):
    """Computes the log-probability of each answer under a model, and its reward."""

    COLUMNS: ClassVar = ("sum_logprob", "mean_logprob", "tokens", "reward", "entropy")
    OVERLAYS: ClassVar = ("reward",)

    from_: From = NEWEST
    data: Data = DATA
    entropy: Annotated[
        bool,
        Field(
            description="Whether to compute the mean entropy (nats) of the distributions that predict the targets, too."
        ),
    ] = False
    reward: Annotated[
        Blocks, Field(description="Rewards of this step alone; they judge all answers, not only gold ones.")
    ] = None

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for name in self.COLUMNS if name != "entropy" or self.entropy)

    @classmethod
    def without(cls, column: str) -> tuple[str, str]:
        wanted = str(column == "entropy").lower()
        return (
            "and no earlier `score` step leaves that column",
            f"Put one before it: `scores: {{do: score, data: ..., entropy: {wanted}}}`.",
        )

    def run(self, work: Work, stage: Stage, folder: Path) -> None:
        """Write scores.jsonl, one line per answer; a file that is there already is read back."""
        path, candidates = folder / "scores.jsonl", work.inputs(stage)
        if not path.is_file():
            module = work.module(self.from_)
            work.journal.phase(f"score {stage.name}")
            lines = scores.score_candidates(
                replace(work.language, recipe=stage.recipe),
                policy.TokenPolicy(module),
                candidates,
                entropy=self.entropy,
                judge_again="reward" in self.model_fields_set,
                tokens=workspace.micro_tokens(stage.recipe, module, work.workspace.device),
                log=work.journal.event,
            )
            scores.write_scores(path, lines)
        lines = read_jsonl(path)
        work.columns |= scores.scored_columns(lines)
        work.note(stage, folder, scores.scores_facts(lines, sum(len(candidate.row) for candidate in candidates)))
