"""Hostile answers: texts that a model may write, and that a reward or metric must survive, in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from luthier.conformance.base import Failed
from luthier.rewards._guard import TooSlow, within

LONG = 20_000
HOSTILE = (
    "", " ", "\n", "\x00", "\ud800", "é\u0301🎻", "\u202e12", "١٢", "½", "NaN", "-Infinity", "1e999", "1/0", "```", "{",
    "\\boxed{", "9" * 400, '{"a":' * 300 + "1" + "}" * 300, "1%" * LONG, "1" + " " * LONG + "2", "\\boxed{1}" * LONG,
    "9" * LONG, "1," * LONG, "{" * LONG, '{"a":' * LONG, "[" * LONG, "\\boxed{" * LONG, "(A) " * LONG, "a" * LONG + "!",
    " " * LONG, "####" * LONG, "```json\n" * LONG, "\\frac{" * LONG, "-" * LONG, "%" * LONG, "1 1/2 " * LONG,
)  # fmt: skip
PATIENCE = 5.0
"""Seconds that a reward or metric may take for one of the longest hostile answers."""


def survived(judge: Any, text: str, judging: Callable[[], Any]) -> Any:
    """Call `judging`, which judges this text, and return its value.

    Raises:
        Failed: the call raises, or takes longer than PATIENCE.
    """
    try:
        return within(PATIENCE, judging)
    except TooSlow:
        raise Failed(f"{judge!r}: the answer {short(text)} takes more than {PATIENCE:g} s") from None
    except Failed:  # `judging` checks its value itself
        raise
    except Exception as error:
        described = f"{type(error).__name__}: {str(error)[:200]}"
        raise Failed(f"{judge!r}: the answer {short(text)} makes it fail: {described}") from None


def short(text: str) -> str:
    """A text's beginning and length, for messages."""
    return f"{text[:20]!r} ({len(text)} characters)"
