"""The checks of selectors: which records are kept depends on the data order, and not on batching, ranks or stops."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from luthier import parts
from luthier.conformance.base import Failed, check_options, variants
from luthier.conformance.ranks import Meeting, Peer
from luthier.conformance.tiny import RECORDS, tiny_rows
from luthier.conformance.training import LAYOUTS, trainer, weights_of
from luthier.engine.budget import Budget
from luthier.engine.checkpoints import Saving
from luthier.engine.micro_batches import Batching
from luthier.engine.score import with_column
from luthier.engine.trainer import Trainer
from luthier.errors import RunError
from luthier.select.base import Selector
from luthier.types import Row

CANDIDATES = 10
"""Of each update: more than one pool, and the last pool smaller than the others."""


def selected_rows(selector: Selector, count: int = 2 * RECORDS) -> list[Row]:
    """Records with every column that the selector reads: invented log-probabilities, keyed by the column's name."""
    rows = tiny_rows(count)
    for name in selector.reads():
        draw = numpy.random.default_rng(list(name.encode()))
        column = {row.id: -3 * draw.random(len(row), dtype=numpy.float32) for row in rows}
        rows = with_column(rows, name, column)
    return rows


def kept_records(selector: Selector, batching: Batching) -> list[list[str]]:
    """The records trained on in each of four updates of ten candidates, in data order."""
    return _noted(_selecting(selector, batching))


def _noted(run: Trainer) -> list[list[str]]:
    kept: list[list[str]] = []
    update = run._update  # the rows that reach an update are those that the selector kept

    def noting(rows: Sequence[Row], progress: float, done: float) -> Any:
        kept.append([row.id for row in rows])
        return update(rows, progress, done)

    run._update = noting
    run.train()
    return kept


def _selecting(selector: Selector, batching: Batching, **more: Any) -> Trainer:
    adamw = parts.build("optimizer", {"kind": "adamw", "lr": 1e-3})
    defaults: dict[str, Any] = {"optimizer": adamw, "budget": Budget("updates", 4), "selector": selector}
    sft, full = parts.build("objective", "sft"), parts.build("tuner", "full")
    return trainer(sft, full, selected_rows(selector), batching, **(defaults | more))


def check_selection_invariance(selectors: list[Selector]) -> None:
    """The kept records do not depend on splits, padding side or packing."""
    for selector in selectors:
        one_batch = kept_records(selector, Batching(CANDIDATES, 10_000))
        for name, layout in LAYOUTS.items():
            if kept_records(selector, dataclasses.replace(layout, records=CANDIDATES)) != one_batch:
                raise Failed(f"{selector!r}: with {name} other records are kept: does a score depend on padding?")


def check_selection_ranks(selector: Selector) -> None:
    """Two ranks keep the same records as one, update after update."""
    batching = Batching(CANDIDATES, 40)
    one_process = kept_records(selector, batching)
    meeting = Meeting(2)
    runs = [_selecting(selector, batching, world=Peer(rank, 2, meeting)) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        pending = [pool.submit(_noted, run) for run in runs]
        kept_by_rank = [future.result(timeout=120) for future in pending]
    if any(kept != one_process for kept in kept_by_rank):
        raise Failed("two ranks keep other records than one: does a score depend on more than its own record?")


def check_selection_resume(selector: Selector) -> None:
    """Stopped after two updates and resumed, the same records are kept and the weights are bit-identical."""
    with tempfile.TemporaryDirectory() as folder:
        unstopped = _selecting(selector, Batching(CANDIDATES, 40))
        unstopped.train()
        saving = Saving(Path(folder))
        calls = iter((False, True))
        _selecting(selector, Batching(CANDIDATES, 40), saving=saving, stop_requested=lambda: next(calls)).train()
        resumed = _selecting(selector, Batching(CANDIDATES, 40), saving=saving)
        resumed.resume()
        resumed.train()
    for name, master in unstopped.masters.master.items():
        if not torch.equal(master, resumed.masters.master[name]):
            raise Failed(f"after a resume, {name} differs: is there state outside `start()`?")
    if unstopped.position.looked_tokens != resumed.position.looked_tokens:
        raise Failed("after a resume, the count of scored tokens differs")


def check_selection_share(selector: Selector) -> None:
    """Of every pool the share `keep` is trained on, at least one record; every scored candidate is counted."""
    run = _selecting(selector, Batching(CANDIDATES, 10_000), budget=Budget("updates", 1))
    events: list[dict[str, Any]] = []
    run.observe = events.append
    run.train()
    sizes = [min(selector.pool, CANDIDATES - start) for start in range(0, CANDIDATES, selector.pool)]
    expected = sum(max(1, int(selector.keep * size + 0.5)) for size in sizes)
    if events[-1]["kept"] != expected or run.position.records != CANDIDATES:
        raise Failed(f"kept {events[-1]['kept']} of {CANDIDATES} candidates; keep={selector.keep} means {expected}")
    if run.position.looked_rows != CANDIDATES * selector.FORWARD:
        raise Failed(f"{run.position.looked_rows} candidates are reported as scored, not {CANDIDATES}")


def check_selection_keeps_nothing(part: type[Any]) -> None:
    """An update whose selector keeps no record ends the run with a RunError."""

    class Nothing(part):
        def chosen(self, scores: Tensor) -> list[int]:
            return []

    try:
        kept_records(Nothing(**part.SETTINGS[0]), Batching(CANDIDATES, 10_000))
    except RunError:
        return
    raise Failed("an update went on without any record")


def checks(part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of a selector, in the order they are run."""
    selectors = variants(part)
    first = selectors[0]

    def weights(selector: Selector) -> dict[str, Tensor]:
        run = _selecting(selector, Batching(CANDIDATES, 10_000))
        run.train()
        return weights_of(run)

    yield "kept records: splits, padding side, packing", lambda: check_selection_invariance(selectors)
    yield "kept records: two ranks", lambda: check_selection_ranks(first)
    yield "keeps its share, counts what it scored", lambda: check_selection_share(first)
    yield "every option changes something", lambda: check_options(selectors, weights)
    yield "deterministic by seed, exact resume", lambda: check_selection_resume(first)
    yield "keeps nothing: refused", lambda: check_selection_keeps_nothing(part)
