"""Loop: carry out a body of steps several times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from luthier.parts import lazy
from luthier.recipe.settings import Count
from luthier.recipe.steps import CHUNK, DATA, NEWEST
from luthier.steps.verbs.base import Data, Share, Status, Verb
from luthier.types import Candidate

if TYPE_CHECKING:
    from luthier.recipe import Stage
    from luthier.steps.work import Work

batches = lazy("luthier.data.batches")
pipeline = lazy("luthier.steps.pipeline")


class Loop(Verb):
    """Carries out a body of steps several times, each round on its own share of the records."""

    LEAVES: ClassVar = ("model",)

    data: Data = DATA
    share: Share = None
    rounds: Annotated[
        Count,
        Field(description="Number of times that the body is carried out; each round has an equal part of the records."),
    ] = 2
    carry: Annotated[
        bool,
        Field(
            description="Whether all rounds are one training, with one optimiser and one schedule. Otherwise each round"
            " starts both anew, on the model of the previous round."
        ),
    ] = False
    steps: Annotated[
        dict[str, Any],
        Field(description="The body, written like the recipe's `steps`; exactly one of its steps trains."),
    ]

    @property
    def repeats(self) -> int:
        return self.rounds

    def check_body(self, body: Mapping[str, Verb]) -> None:
        """Exactly one step of the body trains: with several, `carry` would not say which training continues."""
        sharing = [verb for verb in body.values() if "share" in type(verb).model_fields]
        if len(sharing) != 1 or not sharing[0].TRAINS:
            raise ValueError(f"the body of a loop trains in exactly one step, found {len(sharing)}")

    def run(self, work: Work, stage: Stage, folder: Path) -> Status:
        """Carry out the body once per round, each round on its own chunk of the records."""
        later = work.ahead
        chunks = _chunks(work.inputs(stage), self.rounds, work.run.recipe.settings.seed)
        work.carried = {}
        for number, chunk in enumerate(chunks):
            work.records[CHUNK] = chunk
            work.span = (number / self.rounds, (number + 1) / self.rounds) if self.carry else None
            # In all rounds but the last, the body follows itself: models that it starts from must be kept.
            after = [*(stage.body if number + 1 < self.rounds else ()), *later]
            if pipeline.run_steps(work, stage.body, folder / f"round-{number + 1}", after) == "stopped":
                return "stopped"
        work.models[stage.name] = work.models[NEWEST]
        work.carried, work.span = {}, None
        return "done"


def _chunks(source: Sequence[Candidate], rounds: int, seed: int) -> list[list[Candidate]]:
    """Disjoint equal shares of the records in an order keyed by `seed`; a record's candidates stay together."""
    names = list(dict.fromkeys(candidate.record.id for candidate in source))
    ordered = [names[index] for index in batches.data_order(names, seed, 0)]
    chunk_of = {name: index * rounds // len(ordered) for index, name in enumerate(ordered)}
    chunks: list[list[Candidate]] = [[] for _ in range(rounds)]
    for candidate in source:
        chunks[chunk_of[candidate.record.id]].append(candidate)
    return chunks
