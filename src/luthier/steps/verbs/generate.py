"""Generate: sample answers to records, and judge them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from luthier import parts
from luthier.data.shapes import has_reference
from luthier.parts import lazy
from luthier.recipe.settings import Count
from luthier.recipe.steps import DATA, NEWEST, StepReference
from luthier.run_folder import read_jsonl
from luthier.steps.verbs.base import Blocks, Data, From, Verb
from luthier.types import Candidate

if TYPE_CHECKING:
    from luthier.recipe import Stage
    from luthier.sampling.samplers.base import SamplerPart
    from luthier.steps.work import Work

answers = lazy("luthier.modalities.language.answers")
FILE = "records.jsonl"


def _instruction(text: str | None) -> str | None:
    if text is not None and "{prompt}" not in text:
        raise ValueError("expected text with {prompt}, and {answer} where it is shown")
    return text


class Generate(Verb):
    """Samples answers to each record and has them judged; the model answers, or the `sampler` that its block names."""

    LEAVES: ClassVar = ("records",)
    OVERLAYS: ClassVar = ("generate", "reward")

    from_: From = NEWEST
    data: Data = DATA
    generate: Blocks = None
    reward: Blocks = None
    samples: Annotated[
        Count,
        Field(description="Answers sampled for each record; more cost more and give `select` a wider choice."),
    ] = 1
    instruction: Annotated[
        str | None,
        AfterValidator(_instruction),
        Field(
            description="Text that replaces the prompt while sampling, with `{prompt}` and, to show the gold answer,"
            " `{answer}`. Training always uses the record's own prompt."
        ),
    ] = None
    unless: Annotated[
        str | None,
        StepReference("records"),
        Field(description="An earlier step; records to which it has a right answer (reward of 1 or more) are skipped."),
    ] = None

    def check(self, stage: Stage, columns: Collection[str]) -> None:
        """Lets another model answer if the step's own block names it; the recipe's block may not."""
        if "sampler" not in (self.generate or {}):
            super().check(stage, columns)

    def server(self, stage: Stage) -> str | None:
        return getattr(self._sampler(stage), "url", None)

    def reach(self, stage: Stage, folder: Path | None = None) -> None:
        """Reach the server, unless the step has written its answers already."""
        if folder is None or not any(folder.glob(f"steps/**/{stage.name}/{FILE}")):
            self._sampler(stage).reach()

    def _sampler(self, stage: Stage) -> SamplerPart:
        return parts.build("sampler", stage.recipe.settings.generate.sampler, stage.recipe.base)

    def run(self, work: Work, stage: Stage, folder: Path) -> None:
        """Write records.jsonl, one line per answer; a file that is there already is read back.

        Records whose own answer is labelled bad are not asked: samples equal to it would be judged right.
        """
        path, workspace = folder / FILE, replace(work.language, recipe=stage.recipe)
        known = self._asked(work, stage)
        asked = [candidate for candidate in known if has_reference(candidate.record)]
        without = len({candidate.record.id for candidate in known} - {candidate.record.id for candidate in asked})
        total = len({candidate.record.id for candidate in asked}) * self.samples
        if not path.is_file():
            answers.write_candidates(path, self._generate(work, stage, folder, asked, total))
        # Read back even when just written, so that a resumed run has the same candidates bit for bit.
        candidates = answers.read_candidates(path, workspace)
        work.records[stage.name] = candidates
        rewards = [candidate.reward for candidate in candidates if candidate.reward is not None]
        too_long = self._too_long(work, folder)
        left_out = sum(not line["kept"] for line in too_long)
        counts = {
            "refused": total - len(candidates) - left_out,
            "too_long": len(too_long),
            "without_reference": without,
        }
        facts: dict[str, Any] = {
            "answers": len(candidates),
            **{name: count for name, count in counts.items() if count},
            "generated_tokens": sum(candidate.row.targets for candidate in candidates),
            "reward": sum(rewards) / len(rewards) if rewards else None,
            "right": sum(reward >= 1 for reward in rewards),
        }
        work.note(stage, folder, facts)

    def _too_long(self, work: Work, folder: Path) -> list[dict[str, Any]]:
        """The events of answers that `data.max_tokens` left out or cut."""
        lines = read_jsonl(work.run.folder / "metrics.jsonl")
        label = work.label(folder)
        return [line for line in lines if line.get("event") == answers.TOO_LONG and line.get("step", "") == label]

    def _asked(self, work: Work, stage: Stage) -> list[Candidate]:
        """The candidates of `data`, without records that the step `unless` has solved."""
        asked = work.inputs(stage)
        if self.unless is None:
            return asked
        earlier = work.records[self.unless]
        solved = {candidate.record.id for candidate in earlier if (candidate.reward or 0) >= 1}
        return [candidate for candidate in asked if candidate.record.id not in solved]

    def _generate(self, work: Work, stage: Stage, folder: Path, asked: list[Candidate], total: int) -> list[Candidate]:
        workspace, block = replace(work.language, recipe=stage.recipe), stage.recipe.settings.generate
        sample = answers.make_sampler(workspace, work.module(self.from_), block, work.run.shared)
        label, observe = work.label(folder), work.observer(folder)
        work.journal.forget_after(0, label)  # an earlier try may have logged failed rewards
        progress = work.journal.phase(f"generate {stage.name}", total)
        return answers.generate_candidates(
            workspace,
            label,
            asked,
            self.samples,
            self.instruction,
            sample,
            answers.make_judge(workspace, block, observe),
            lambda done: progress(done, total),
            observe,
        )
