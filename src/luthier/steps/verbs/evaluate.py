"""Evaluate: score a model between two steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from luthier.parts import lazy
from luthier.recipe.steps import NEWEST
from luthier.steps.verbs.base import Blocks, From, Verb

if TYPE_CHECKING:
    from luthier.recipe import Stage
    from luthier.steps.work import Work

evaluation = lazy("luthier.steps.evaluate")


class Evaluate(Verb):
    """Scores the model as it is between two steps."""

    OVERLAYS: ClassVar = ("generate",)

    from_: From = NEWEST
    generate: Blocks = None

    def run(self, work: Work, stage: Stage, folder: Path) -> None:
        """Writes evaluation.jsonl and samples.jsonl into the step's folder; run.json has the summaries."""
        workspace = replace(work.workspace, recipe=stage.recipe)
        summaries = evaluation.evaluate_sets(workspace, work.module(self.from_), work.run.sets, folder, work.journal)
        work.note(stage, folder, {"evaluation": summaries})
