"""The conformance matrix of subsets: made-up candidates, four answers to each of twelve records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from luthier.conformance.base import Failed, check_options, variants
from luthier.select.records.base import Columns, Subset
from luthier.types import Candidate, Record, Row, Stream

RECORDS, ANSWERS = 12, 4
MOMENTS = 5
REWARDS = (None, 0.0, 0.5, 0.7, 1.0, 1.0)


def made_up(records: int = RECORDS) -> list[Candidate]:
    """Three answers and the gold answer of each record; some records lack gold, some have no right answer."""
    return [one for number in range(records) for one in _answers(number)]


def _answers(number: int) -> Iterator[Candidate]:
    draw = numpy.random.default_rng(number)
    prompt = [1, 2 + number // 2]  # two records ask the same
    record = Record(
        f"record-{number}",
        "prompt_completion",
        {"prompt": "p", "completion": "c", "source": "ab"[number % 2]},
        "made up",
    )
    for index in range(ANSWERS):
        source = "data" if index == ANSWERS - 1 else "answers"
        if source == "data" and number % 3 == 0:
            continue
        length = 3 + 7 * (number * ANSWERS + index) % (RECORDS * ANSWERS)  # all differ: equal scores go by place
        answer = draw.integers(5, 50, length)
        ids = numpy.concatenate([prompt, answer]).astype(numpy.int32)
        weights = numpy.repeat(numpy.array([0, 1], numpy.float32), [len(prompt), len(answer)])
        reward = REWARDS[int(draw.integers(len(REWARDS) if number % 4 else 3))]
        row = Row(f"record-{number}@{source}.{index}", ids, {"weights": Stream(weights, "token")})
        yield Candidate(record, row, f"answer {index}", source, None if source == "data" else reward)


def columns_of(part: Subset, candidates: Sequence[Candidate]) -> Columns:
    """Made-up columns, keyed by row: log-probabilities per token, five falling losses of a `trajectory`."""
    return {name: {one.row.id: _made_up_values(name, one.row) for one in candidates} for name in part.READS}


def _made_up_values(name: str, row: Row) -> numpy.ndarray:
    draw = numpy.random.default_rng(list(f"{name}{row.id}".encode()))
    return _losses(draw) if name == "trajectory" else -3 * draw.random(len(row), dtype=numpy.float32)


def _losses(draw: numpy.random.Generator) -> numpy.ndarray:
    start, factor = draw.choice([1.0, 2.0, 4.0]), draw.choice([0.4, 0.7, 0.9])
    return (start * factor ** numpy.arange(MOMENTS) + 0.05 * draw.random(MOMENTS)).astype(numpy.float32)


def kept_rows(part: Subset, candidates: Sequence[Candidate], seed: int = 0) -> list[str]:
    """Ids of the rows that are kept, in the order in which they are left."""
    places = part.choose(candidates, columns_of(part, candidates), seed)
    if not all(isinstance(place, int) and 0 <= place < len(candidates) for place in places):
        raise Failed(f"{part!r}: {places} are not places of {len(candidates)} candidates")
    if len(set(places)) < len(places):
        raise Failed(f"{part!r}: a candidate is kept twice")
    return [candidates[place].row.id for place in places]


def check_places(subsets: Sequence[Subset]) -> None:
    """Each candidate at most once, and nothing but candidates; nothing of nothing."""
    for part in subsets:
        if not kept_rows(part, made_up()):
            raise Failed(f"{part!r}: keeps nothing of {len(made_up())} candidates")
        kept_rows(part, made_up(1))
        if kept_rows(part, []):
            raise Failed(f"{part!r}: keeps something of nothing")


def check_determinism(part: Subset) -> None:
    """The same candidates, columns and seed give the same choice, and are left as they were."""
    candidates = made_up()
    columns = columns_of(part, candidates)
    kept = {name: {row: numpy.copy(value) for row, value in column.items()} for name, column in columns.items()}
    one, other = (part.choose(candidates, columns, 0) for _ in range(2))
    if one != other:
        raise Failed("two choices with one seed differ: is there a random call other than by the seed?")
    if any((columns[name][row] != value).any() for name, column in kept.items() for row, value in column.items()):
        raise Failed("the columns are changed: copy them")


def check_order(subsets: Sequence[Subset]) -> None:
    """With the records in another order the same rows are kept."""
    for part in subsets:
        answers = [list(_answers(number)) for number in range(RECORDS)]
        order = numpy.random.default_rng(0).permutation(RECORDS)
        moved = [one for number in order for one in answers[number]]
        if sorted(kept_rows(part, made_up())) != sorted(kept_rows(part, moved)):
            raise Failed(f"{part!r}: with the records in another order other rows are kept")


def numbers_of(part: Subset) -> dict[str, Tensor]:
    """The places that are kept, with two seeds."""
    place = {one.row.id: number for number, one in enumerate(made_up())}
    return {
        f"seed {seed}": torch.tensor([place[row] for row in kept_rows(part, made_up(), seed)], dtype=torch.float64)
        for seed in range(2)
    }


def checks(part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of a subset, in the order they are run."""
    made = variants(part)
    yield "keeps given candidates, nothing of nothing", lambda: check_places(made)
    yield "deterministic by seed, leaves what it is given", lambda: check_determinism(made[0])
    yield "independent of the order of records", lambda: check_order(made)
    yield "every option changes something", lambda: check_options(made, numbers_of)
