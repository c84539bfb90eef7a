"""What the steps of a recipe hand on: models, records and columns, by the name of the step that left them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from luthier.engine.trainer import Trainer
from luthier.modalities.base import Workspace
from luthier.modalities.language.workspace import LanguageWorkspace
from luthier.recipe import Stage, flat
from luthier.recipe.steps import NEWEST, names_in
from luthier.runs.journal import Journal
from luthier.runs.run import Run
from luthier.runs.stop import Stop
from luthier.steps.model import StepModel, derived_id
from luthier.types import Candidate


@dataclass
class Work:
    """A recipe being carried out.

    Attributes:
        columns: name → id of a candidate's row → number or array; the newest step that leaves a column counts.
        facts: by a step's label, what run.json says of it.
        ahead: the steps behind the one at work.
        carried: by a training step's name, its trainer in the round before, for a loop whose rounds are one training.
        span: the part of that one training that the round is, within 0 and 1; None where rounds start anew.
    """

    run: Run
    workspace: Workspace
    journal: Journal
    stop: Stop
    models: dict[str, StepModel] = field(default_factory=dict)
    records: dict[str, list[Candidate]] = field(default_factory=dict)
    columns: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    ahead: Sequence[Stage] = ()
    carried: dict[str, Trainer] = field(default_factory=dict)
    span: tuple[float, float] | None = None
    _trained: list[str] = field(default_factory=list)

    @property
    def language(self) -> LanguageWorkspace:
        """The workspace of pipelines, which are of language models."""
        assert isinstance(self.workspace, LanguageWorkspace)
        return self.workspace

    def inputs(self, stage: Stage) -> list[Candidate]:
        """The records that a step's `data` names, one list after the other."""
        names = stage.verb.data
        return [
            candidate for name in (names if isinstance(names, list) else [names]) for candidate in self.records[name]
        ]

    def module(self, name: str) -> nn.Module:
        """The model under a name, to look at or to sample from."""
        return self.models[name].module

    def merged_module(self, name: str) -> nn.Module:
        """The model under a name with its tuning merged, to read its weights."""
        return self.models[name].merged()

    def free_module(self, name: str) -> nn.Module:
        """The model under a name with its tuning merged, free to be changed: a later step that starts from it keeps it.

        It is a copy where a step ahead names that model, and otherwise the model itself.
        """
        source = self.models[name]
        module = source.merged()
        needed = {target for stage in flat(self.ahead) for _, target in names_in(stage.verb, "model")}
        kept = any(self.models.get(target) is source for target in needed - {NEWEST})
        return (copy.deepcopy(module) if kept else module).requires_grad_(False)

    def leave_module(self, stage: Stage, module: nn.Module) -> None:
        """Hand on a model that no training made: merged, pruned, quantised. Later steps find it as any other."""
        changed = 1 + max(model.trainings for model in self.models.values())
        self.leave_model(stage, StepModel(module, None, derived_id("", stage, module.state_dict()), changed))

    def leave_model(self, stage: Stage, model: StepModel) -> None:
        """Hand on a model, under the step's name and as the newest."""
        self.models[stage.name] = self.models[NEWEST] = model

    def label(self, folder: Path) -> str:
        """A step's name with the loops and rounds that it stands in; empty in a recipe without `steps`."""
        return "" if folder == self.run.folder else str(folder.relative_to(self.run.folder / "steps"))

    def observer(self, folder: Path) -> Callable[[dict[str, Any]], None]:
        """Writes events into metrics.jsonl under the step's label."""
        label = self.label(folder)
        return self.journal.event if not label else lambda event: self.journal.event({**event, "step": label})

    def note(self, stage: Stage, folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Let run.json say this of a step; returns it with what the step does."""
        label = self.label(folder)
        self.facts[label] = {"do": stage.do, **facts}
        if stage.verb.TRAINS and label not in self._trained:
            self._trained.append(label)
        return self.facts[label]

    def summary(self) -> dict[str, Any]:
        """What run.json says of the steps: `train` as of one training, and `steps` where there are several."""
        trained = [self.facts[label] for label in self._trained]
        if self.run.recipe.settings.steps is None:
            return {"train": {name: fact for name, fact in trained[0].items() if name != "do"}}
        others = [facts for label, facts in self.facts.items() if label not in self._trained]
        return {"train": _together(trained, others), "steps": self.facts}


def _together(trained: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several trainings as one: sums of what was used, also by `others` than trainings, the largest memory."""
    sums = ("updates", "records", "tokens", "targets", "target_tokens", "seconds", "skipped_updates")
    whole: dict[str, Any] = {name: sum(facts[name] for facts in trained) for name in sums}
    for name in ("looked_rows", "looked_tokens", "generated_tokens"):
        whole[name] = sum(facts.get(name, 0) for facts in (*trained, *others))
    largest = ("peak_memory_bytes", "estimated_memory_bytes", "trainable_parameters")
    whole |= {name: max(facts[name] for facts in trained) for name in largest}
    whole["counts"] = trained[0]["counts"]
    whole["tokens_per_second"] = whole["tokens"] / whole["seconds"] if whole["seconds"] else None
    whole["repeatable"] = all(facts["repeatable"] for facts in trained)
    own = [facts for facts in trained if "model" not in facts] or trained  # models trained aside only look
    whole |= {"loss_first": own[0]["loss_first"], "loss_last": own[-1]["loss_last"]}
    return {**whole, **{name: own[0][name] for name in ("weights_id", "data", "micro_tokens")}}
