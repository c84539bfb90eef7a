"""Select: choose the records, or the answers to them, for later steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from luthier import parts
from luthier.data.shapes import label_of
from luthier.errors import RecipeError, RunError
from luthier.parts import lazy
from luthier.recipe.steps import DATA, NEWEST
from luthier.run_folder import write_json
from luthier.steps.verbs.base import Data, From, Verb
from luthier.types import Candidate

if TYPE_CHECKING:
    from luthier.recipe import Stage
    from luthier.select.records.base import Subset
    from luthier.steps.work import Work

workspace = lazy("luthier.modalities.base")
policy = lazy("luthier.models.policy")
scoring = lazy("luthier.engine.score")


def _subset(spec: Any) -> Any:
    if isinstance(spec, str):
        return {"kind": spec}
    if isinstance(spec, Mapping) and isinstance(spec.get("kind"), str):
        return dict(spec)
    raise ValueError("expected the name of a part or a block with `kind`")


class Select(Verb):
    """Keeps some records, or some answers to them, in the order of a subset."""

    LEAVES: ClassVar = ("records",)
    SETTINGS: ClassVar = ({"subset": {"kind": "grape"}},)

    from_: From = NEWEST
    data: Data = DATA
    subset: Annotated[
        dict[str, Any],
        BeforeValidator(_subset),
        Field(description="The subset that chooses; log-probabilities that it reads are those of the model `from`."),
    ]

    def named_parts(self) -> Iterable[tuple[str, str, Any]]:
        return [("subset", "subset", self.subset)]

    def check(self, stage: Stage, columns: Collection[str]) -> None:
        """Columns that some verb leaves must come from an earlier step; this step computes the others."""
        super().check(stage, columns)
        verb_of: dict[str, str] = {}
        for entry in parts.catalogue(self.SLOT):
            verb_of |= dict.fromkeys(entry.constants.get("COLUMNS", ()), entry.name)
        for read in self._part(stage).READS:
            if read in verb_of and read not in columns:
                why, hint = parts.load(self.SLOT, verb_of[read]).without(read)
                raise RecipeError(f"The step `{stage.name}` chooses by `{read}`, {why}.", hint)

    def run(self, work: Work, stage: Stage, folder: Path) -> None:
        """Leave the chosen candidates in the order that the subset gives; kept.json lists their rows."""
        part, known = self._part(stage), work.inputs(stage)
        candidates = [candidate for candidate in known if not _is_untrained(work, candidate, part.READS)]
        columns = self._columns(work, stage, candidates, part.READS)
        indices = part.choose(candidates, columns, stage.recipe.settings.seed)
        chosen = [candidates[index] for index in indices]
        work.records[stage.name] = chosen
        sources = dict(Counter(candidate.source for candidate in chosen))
        facts: dict[str, Any] = {"candidates": len(candidates), "kept": len(chosen), "sources": sources}
        if untrained := len(known) - len(candidates):
            facts["untrained"] = untrained
        if set(part.READS) - set(work.columns):  # the model scored all candidates here, which is a cost
            tokens = sum(len(candidate.row) for candidate in candidates)
            facts |= {"looked_rows": len(candidates), "looked_tokens": tokens}
        facts = work.note(stage, folder, facts)
        write_json(folder / "kept.json", {**facts, "rows": [candidate.row.id for candidate in chosen]})

    def _part(self, stage: Stage) -> Subset:
        return parts.build("subset", self.subset, stage.recipe.base)

    def _columns(
        self, work: Work, stage: Stage, candidates: Sequence[Candidate], names: Sequence[str]
    ) -> dict[str, Mapping[str, Any]]:
        """Each column as the newest step that leaves it left it; the other columns from a score pass of the model."""
        columns = {name: work.columns[name] for name in names if name in work.columns}
        for name, column in columns.items():
            _refuse_missing(stage, candidates, name, column)
        if computed := [name for name in names if name not in columns]:
            module, rows = work.module(self.from_), [candidate.row for candidate in candidates]
            tokens = workspace.micro_tokens(stage.recipe, module, work.workspace.device)
            columns |= scoring.score(policy.TokenPolicy(module), rows, computed, tokens)
        return columns


def _is_untrained(work: Work, candidate: Candidate, names: Sequence[str]) -> bool:
    """Whether the answer is labelled bad, and lacks a column since a training left it out for that."""
    if label_of(candidate.record) is not False:
        return False
    return any(name in work.columns and candidate.row.id not in work.columns[name] for name in names)


def _refuse_missing(stage: Stage, candidates: Sequence[Candidate], name: str, column: Mapping[str, Any]) -> None:
    """Raise RunError if a column lacks some of the candidates: its step scored other answers."""
    missing = [candidate.row.id for candidate in candidates if candidate.row.id not in column]
    if missing:
        raise RunError(
            f"Step `{stage.name}` chooses by `{name}`, which {len(missing)} of {len(candidates)} answers lack, such"
            f" as {missing[0]}.",
            f"Give the earlier step that leaves `{name}` the same `data`.",
        )
