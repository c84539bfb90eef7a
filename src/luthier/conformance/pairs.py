"""Trainings of pairs: objectives, tuners and selectors train with each other, or are refused by a LuthierError.

A covering array of triples holds every pair of two slots. A triple that trains shows its three pairs at once; a pair
that no trained triple shows is trained by itself, completed by `sft`, `full` or no selection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Literal

import torch

from luthier import parts
from luthier.conformance.base import variants
from luthier.conformance.needs_of import rows_for
from luthier.conformance.tiny import with_streams
from luthier.conformance.training import trainer, weights_of
from luthier.engine.budget import Budget
from luthier.engine.micro_batches import Batching
from luthier.engine.trainer import Trainer
from luthier.engine.update import NotFinite
from luthier.errors import LuthierError

PAIRED = ("objective", "tuner", "selector")
PLAIN = {"objective": "sft", "tuner": "full"}
"""Completes a pair that names no part of these slots."""

UPDATES = 3
Named = tuple[str, str]
"""A slot and the name of a part of it."""

Combination = tuple[Named, ...]


@dataclass(frozen=True)
class Trial:
    """The outcome of training one combination; `message` is the refusal, or describes the fault."""

    verdict: Literal["yes", "refused", "fault"]
    message: str = ""


def catalogued() -> dict[str, list[str]]:
    """Slot → the names of its parts."""
    return {slot: [entry.name for entry in parts.catalogue(slot)] for slot in PAIRED}


def all_pairs(names: Mapping[str, Sequence[str]]) -> list[Combination]:
    """Every pair of parts of two different slots."""
    pairs: list[Combination] = []
    for slot, other in combinations(names, 2):
        for first, second in product(names[slot], names[other]):
            pairs.append(((slot, first), (other, second)))
    return pairs


def covering(names: Mapping[str, Sequence[str]]) -> Iterator[Combination]:
    """Combinations of one part of each slot in which every pair occurs; greedy, the same every time."""
    open_pairs = set(all_pairs(names))
    candidates = [tuple(zip(names, chosen, strict=True)) for chosen in product(*names.values())]
    while open_pairs:
        best = max(candidates, key=lambda candidate: len(open_pairs.intersection(combinations(candidate, 2))))
        open_pairs.difference_update(combinations(best, 2))
        yield best


def trials(names: Mapping[str, Sequence[str]]) -> dict[Combination, Trial]:
    """The outcome of every pair, and of each triple that did not train although its pairs do."""
    triples = {triple: attempt(triple) for triple in covering(names)}
    trained: set[Combination] = set()
    for triple, trial in triples.items():
        if trial.verdict == "yes":
            trained.update(combinations(triple, 2))
    outcomes = {pair: Trial("yes") if pair in trained else attempt(pair) for pair in all_pairs(names)}
    for triple, trial in triples.items():
        if trial.verdict != "yes" and all(outcomes[pair].verdict == "yes" for pair in combinations(triple, 2)):
            outcomes[triple] = trial
    return outcomes


def attempt(combination: Combination) -> Trial:
    """Train UPDATES updates. A LuthierError before the first of them is a refusal, and a later one a fault."""
    updates: list[int] = []
    run: Trainer | None = None
    try:
        run = prepared(dict(combination))
        run.observe = lambda event: updates.append(1) if event["event"] == "update" else None
        before = weights_of(run)
        run.train()
    except NotFinite as error:
        return Trial("fault", _describe(combination, str(error)))
    except LuthierError as error:
        if updates:
            return Trial("fault", _describe(combination, f"broke off after {len(updates)} update(s): {error}"))
        return Trial("refused", error.message)
    except Exception as error:
        return Trial("fault", _describe(combination, f"{type(error).__name__}: {error}"))
    masters = run.masters.master
    if not all(bool(torch.isfinite(master).all()) for master in masters.values()):
        return Trial("fault", _describe(combination, "weights are not finite"))
    if all(torch.equal(master, before[name]) for name, master in masters.items()):
        return Trial("fault", _describe(combination, "nothing moved"))
    return Trial("yes")


def prepared(names: Mapping[str, str]) -> Trainer:
    """A trainer of the tiny model of the objective's modality, each part under the first of its SETTINGS."""
    chosen: dict[str, Any] = {}
    for slot, name in {**PLAIN, **names}.items():
        chosen[slot] = variants(parts.load(slot, name))[0]
    objective, selector = chosen["objective"], chosen.get("selector")
    rows = rows_for(objective)
    if selector is not None:
        rows = with_streams(rows, selector.reads())
    return trainer(
        objective,
        chosen["tuner"],
        rows,
        Batching(4, 60, "padded"),
        dtype=torch.float32,
        budget=Budget("updates", UPDATES),
        optimizer=parts.build("optimizer", {"kind": "adamw", "lr": 1e-3}),
        selector=selector,
    )


def _describe(combination: Combination, what: str) -> str:
    return f"{' + '.join(name for _, name in combination)}: {what}"
