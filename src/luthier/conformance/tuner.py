"""The checks of tuners."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from luthier import parts
from luthier.conformance.base import check_options, variants
from luthier.conformance.saved import check_save_and_load
from luthier.conformance.training import (
    check_bfloat16,
    check_determinism,
    check_invariance,
    check_ranks,
    check_resume,
    some_updates,
)


def checks(part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of a tuner, in the order they are run."""
    sft = parts.build("objective", "sft")
    tuners = variants(part)
    first = tuners[0]
    yield "gradient: splits, padding side, packing", lambda: check_invariance([sft], first)
    yield "gradient: two ranks", lambda: check_ranks(sft, first)
    yield "every option changes something", lambda: check_options(tuners, lambda tuner: some_updates(sft, tuner))
    yield "deterministic by seed", lambda: check_determinism(sft, first)
    yield "exact resume", lambda: check_resume(sft, first)
    yield "bfloat16 stays finite", lambda: check_bfloat16(sft, first)
    yield "saved, loaded, merged: same logits", lambda: check_save_and_load(first)
    # dft detaches its weights and asft reads a reference: a tuner must keep both right.
    for name in ("dft", "asft"):
        yield f"composes with {name}", lambda name=name: check_resume(parts.build("objective", name), first)
