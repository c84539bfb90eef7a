"""The checks of subsets: invented candidates, four answers to each of twelve records."""

from __future__ import annotations

import copy
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


def tiny_candidates(records: int = RECORDS) -> list[Candidate]:
    """Three answers and the gold answer of each record; some records lack gold, some have no right answer."""
    return [candidate for number in range(records) for candidate in _answers(number)]


def _answers(number: int) -> Iterator[Candidate]:
    draw = numpy.random.default_rng(number)
    prompt = [1, 2 + number // 2]  # two records ask the same
    record = Record(
        f"record-{number}",
        "prompt_completion",
        {"prompt": "p", "completion": "c", "source": "ab"[number % 2]},
        "invented",
    )
    for index in range(ANSWERS):
        source = "data" if index == ANSWERS - 1 else "answers"
        if source == "data" and number % 3 == 0:
            continue
        length = 3 + 7 * (number * ANSWERS + index) % (
            RECORDS * ANSWERS
        )  # all differ: a subset may break ties by position
        answer = draw.integers(5, 50, length)
        ids = numpy.concatenate([prompt, answer]).astype(numpy.int32)
        weights = numpy.repeat(numpy.array([0, 1], numpy.float32), [len(prompt), len(answer)])
        reward = REWARDS[int(draw.integers(len(REWARDS) if number % 4 else 3))]
        row = Row(f"record-{number}@{source}.{index}", ids, {"weights": Stream(weights, "token")})
        yield Candidate(record, row, f"answer {index}", source, None if source == "data" else reward)


def columns_of(part: Subset, candidates: Sequence[Candidate]) -> Columns:
    """Invented columns, keyed by row: log-probabilities per token, five falling losses of a `trajectory`."""
    columns = {}
    for name in part.READS:
        columns[name] = {candidate.row.id: _column(name, candidate.row) for candidate in candidates}
    return columns


def _column(name: str, row: Row) -> numpy.ndarray:
    draw = numpy.random.default_rng(list(f"{name}{row.id}".encode()))
    return _losses(draw) if name == "trajectory" else -3 * draw.random(len(row), dtype=numpy.float32)


def _losses(draw: numpy.random.Generator) -> numpy.ndarray:
    start, factor = draw.choice([1.0, 2.0, 4.0]), draw.choice([0.4, 0.7, 0.9])
    return (start * factor ** numpy.arange(MOMENTS) + 0.05 * draw.random(MOMENTS)).astype(numpy.float32)


def kept_rows(part: Subset, candidates: Sequence[Candidate], seed: int = 0) -> list[str]:
    """Ids of the kept rows, in the order of the choice.

    Raises:
        Failed: the part chooses something other than distinct indices of candidates.
    """
    indices = part.choose(candidates, columns_of(part, candidates), seed)
    if not all(isinstance(index, int) and 0 <= index < len(candidates) for index in indices):
        raise Failed(f"{part!r}: {indices} are no indices of {len(candidates)} candidates")
    if len(set(indices)) < len(indices):
        raise Failed(f"{part!r}: a candidate is kept twice")
    return [candidates[index].row.id for index in indices]


def check_indices(subsets: Sequence[Subset]) -> None:
    """Some candidates are kept, each at most once; of no candidates none."""
    for part in subsets:
        if not kept_rows(part, tiny_candidates()):
            raise Failed(f"{part!r}: keeps none of {len(tiny_candidates())} candidates")
        kept_rows(part, tiny_candidates(1))
        if kept_rows(part, []):
            raise Failed(f"{part!r}: keeps something although there is no candidate")


def check_determinism(part: Subset) -> None:
    """The same candidates, columns and seed give the same choice; the columns do not change."""
    candidates = tiny_candidates()
    columns = columns_of(part, candidates)
    before = copy.deepcopy(columns)
    first, second = (part.choose(candidates, columns, 0) for _ in range(2))
    if first != second:
        raise Failed("two choices with one seed differ: is there a random call other than by the seed?")
    for name, column in before.items():
        if any((columns[name][row] != array).any() for row, array in column.items()):
            raise Failed("`choose` changes the columns: copy them")


def check_order(subsets: Sequence[Subset]) -> None:
    """With the records in another order the same rows are kept."""
    for part in subsets:
        answers = [list(_answers(number)) for number in range(RECORDS)]
        order = numpy.random.default_rng(0).permutation(RECORDS)
        reordered = [candidate for number in order for candidate in answers[number]]
        if sorted(kept_rows(part, tiny_candidates())) != sorted(kept_rows(part, reordered)):
            raise Failed(f"{part!r}: with the records in another order other rows are kept")


def numbers_of(part: Subset) -> dict[str, Tensor]:
    """The kept indices, with two seeds."""
    candidates = tiny_candidates()
    index = {candidate.row.id: number for number, candidate in enumerate(candidates)}
    numbers = {}
    for seed in range(2):
        kept = [index[row] for row in kept_rows(part, candidates, seed)]
        numbers[f"seed {seed}"] = torch.tensor(kept, dtype=torch.float64)
    return numbers


def checks(part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of a subset, in the order they are run."""
    subsets = variants(part)
    yield "keeps candidates, each at most once", lambda: check_indices(subsets)
    yield "deterministic by seed, its input unchanged", lambda: check_determinism(subsets[0])
    yield "independent of the order of records", lambda: check_order(subsets)
    yield "every option changes something", lambda: check_options(subsets, numbers_of)
