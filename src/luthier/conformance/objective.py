"""The checks of objectives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from luthier import parts
from luthier.conformance.base import check_options, variants
from luthier.conformance.derivative import check_derivative, check_targets
from luthier.conformance.needs_of import checks_of_need
from luthier.conformance.tiny import RECORDS
from luthier.conformance.training import (
    check_bfloat16,
    check_determinism,
    check_ranks,
    check_resume,
    check_splits,
    check_zero_targets,
    now_and_later,
    tuner_for,
)
from luthier.engine.micro_batches import Batching


def checks(part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of an objective, in the order they are run."""
    full = parts.build("tuner", "full")
    objectives = variants(part)
    first = objectives[0]
    yield "gradient: splits, padding side, packing", lambda: check_splits(objectives)
    yield "gradient: two ranks", lambda: check_ranks(first, full)
    yield "gradient: derivative of the loss, but for what is DETACHED", lambda: check_derivative(first, full)
    one_batch = Batching(RECORDS, 10_000, "padded")
    yield (
        "every option changes something",
        lambda: check_options(objectives, lambda objective: now_and_later(objective, tuner_for(objective), one_batch)),
    )
    yield "deterministic by seed", lambda: check_determinism(first, full)
    yield "exact resume", lambda: check_resume(first, full)
    yield "bfloat16 stays finite", lambda: check_bfloat16(first, full)
    if first.MODALITY == "language":  # a record of another modality is its own target
        yield "gradient: of every target, of nothing behind", lambda: check_targets(first, full)
        yield "no targets: refused", lambda: check_zero_targets(first, full)
    yield from checks_of_need(first)
    for name in ("full", "lora"):
        # A resumed training exercises what a composition could break: forward, gradient, step and saved state.
        yield f"composes with {name}", lambda name=name: check_resume(first, parts.build("tuner", name))
