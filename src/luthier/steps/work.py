"""The state of a recipe being carried out: models, records and columns, by the name of the step that left them."""

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
        models: by name; `base`, `newest` and every step that left a model.
        records: by name; `data`, `chunk` within a loop, and every step that left records.
        columns: name → id of a candidate's row → number or array; a later step replaces a column of the same name.
        facts: by a step's label, its block in run.json.
        ahead: the steps after the current one.
        carried: by a training step's name, its trainer of the previous round, for a loop whose rounds are one training.
        span: begin and end, within 0 and 1, of the current round in that one training; None if each round starts anew.
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
        """The workspace of a pipeline; pipelines exist for language models only."""
        assert isinstance(self.workspace, LanguageWorkspace)
        return self.workspace

    def inputs(self, stage: Stage) -> list[Candidate]:
        """The records that a step's `data` names, one list after the other."""
        names = stage.verb.data
        candidates: list[Candidate] = []
        for name in names if isinstance(names, list) else [names]:
            candidates += self.records[name]
        return candidates

    def module(self, name: str) -> nn.Module:
        """The model under a name, to evaluate or to sample from; its tuning stays unmerged."""
        return self.models[name].module

    def merged_module(self, name: str) -> nn.Module:
        """The model under a name with its tuning merged for good, to read its weights."""
        return self.models[name].merged()

    def free_module(self, name: str) -> nn.Module:
        """The model under a name with its tuning merged, which the step may change.

        A copy if a later step names the model, and otherwise the model itself.
        """
        source = self.models[name]
        module = source.merged()
        needed = {target for stage in flat(self.ahead) for _, target in names_in(stage.verb, "model")}
        # `newest` is no reason to copy: by then this step has left a newer model.
        kept = any(self.models.get(target) is source for target in needed - {NEWEST})
        return (copy.deepcopy(module) if kept else module).requires_grad_(False)

    def leave_module(self, stage: Stage, module: nn.Module) -> None:
        """Leave a model that no training made (merged, pruned, quantised) for later steps, as `leave_model` does."""
        changed = 1 + max(model.trainings for model in self.models.values())
        self.leave_model(stage, StepModel(module, None, derived_id("", stage, module.state_dict()), changed))

    def leave_model(self, stage: Stage, model: StepModel) -> None:
        """Leave a model for later steps, under the step's name and as the newest."""
        self.models[stage.name] = self.models[NEWEST] = model

    def label(self, folder: Path) -> str:
        """A step's path of loops, rounds and names, such as `loop/round-1/train`; empty in a recipe without `steps`."""
        return "" if folder == self.run.folder else str(folder.relative_to(self.run.folder / "steps"))

    def observer(self, folder: Path) -> Callable[[dict[str, Any]], None]:
        """The callback that writes events into metrics.jsonl with the step's label."""
        label = self.label(folder)
        return self.journal.event if not label else lambda event: self.journal.event({**event, "step": label})

    def note(self, stage: Stage, folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Record a step's facts for run.json; returns them with the step's verb (`do`)."""
        label = self.label(folder)
        self.facts[label] = {"do": stage.do, **facts}
        if stage.verb.TRAINS and label not in self._trained:
            self._trained.append(label)
        return self.facts[label]

    def summary(self) -> dict[str, Any]:
        """The blocks of run.json about the steps: `train` as if of one training, and `steps` for a pipeline."""
        trained = [self.facts[label] for label in self._trained]
        if self.run.recipe.settings.steps is None:
            return {"train": {name: fact for name, fact in trained[0].items() if name != "do"}}
        others = [facts for label, facts in self.facts.items() if label not in self._trained]
        return {"train": _together(trained, others), "steps": self.facts}


def _together(trained: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several trainings as one: sums of rows, tokens and seconds, the largest memory, the first and last loss.

    Args:
        others: facts of the steps that do not train; their generated and scored tokens count too.
    """
    sums = ("updates", "records", "tokens", "targets", "target_tokens", "seconds", "skipped_updates")
    total: dict[str, Any] = {}
    for name in sums:
        total[name] = sum(facts[name] for facts in trained)
    for name in ("looked_rows", "looked_tokens", "generated_tokens"):
        total[name] = sum(facts.get(name, 0) for facts in (*trained, *others))
    largest = ("peak_memory_bytes", "estimated_memory_bytes", "trainable_parameters")
    for name in largest:
        total[name] = max(facts[name] for facts in trained)
    total["counts"] = trained[0]["counts"]
    total["notes"] = list(dict.fromkeys(note for facts in trained for note in facts.get("notes", [])))
    total["tokens_per_second"] = total["tokens"] / total["seconds"] if total["seconds"] else None
    total["repeatable"] = all(facts["repeatable"] for facts in trained)
    # A proxy (a step with a `model` of its own) is not the model that the run leaves: its losses say nothing of it.
    own = [facts for facts in trained if "model" not in facts] or trained
    total |= {"loss_first": own[0]["loss_first"], "loss_last": own[-1]["loss_last"]}
    total["trains"] = own[0].get("trains")
    total["warnings"] = list(dict.fromkeys(line for facts in own for line in facts.get("warnings", [])))
    return {**total, **{name: own[0][name] for name in ("weights_id", "data", "micro_tokens")}}
