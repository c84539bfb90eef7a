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
    """The checks of a tuner."""
    sft = parts.build("objective", "sft")
    made = variants(part)
    yield "gradient: splits, padding side, packing", lambda: check_invariance([sft], made[0])
    yield "gradient: two ranks", lambda: check_ranks(sft, made[0])
    yield "every option changes something", lambda: check_options(made, lambda one: some_updates(sft, one))
    yield "deterministic by seed", lambda: check_determinism(sft, made[0])
    yield "exact resume", lambda: check_resume(sft, made[0])
    yield "bfloat16 stays finite", lambda: check_bfloat16(sft, made[0])
    yield "saved, loaded, merged: same logits", lambda: check_save_and_load(made[0])
    for name in ("dft", "asft"):
        yield f"composes with {name}", lambda name=name: check_resume(parts.build("objective", name), made[0])
