"""Multiple choice, answered in words."""

from __future__ import annotations

import re
from typing import ClassVar

from luthier.rewards.base import Answer, Reward

LETTER = re.compile(r"(?<![A-Za-z'’])\(?([A-Z])\)?(?![A-Za-z'’])")


class Choice(Reward):
    """1 for an answer that names the right one of the record's choices, by its letter or by its text.

    An answer that is a choice's text counts as that choice; so does one whose last capital letter standing alone is
    the choice's (A is the first). Otherwise the choice whose text comes last in the answer counts, and where one
    choice contains another, the longer. `column` names the list of choices. None where the gold answer names none.
    """

    SETTINGS: ClassVar = ({}, {"column": "options"})

    column: str = "choices"

    def score(self, answer: Answer) -> float | None:
        choices = [str(choice) for choice in answer.record.fields.get(self.column) or ()]
        right = _named(answer.gold, choices)
        return None if right is None else float(_named(answer.text, choices) == right)


def _named(text: str, choices: list[str]) -> int | None:
    """Index of the choice that a text names."""
    plain = [_plain(choice) for choice in choices]
    if _plain(text) in plain:
        return plain.index(_plain(text))
    letters = [place for found in LETTER.findall(text) if (place := ord(found) - ord("A")) < len(choices)]
    if letters:
        return letters[-1]
    ends = [(_end_of(choice, _plain(text)), len(choice), -place) for place, choice in enumerate(plain)]
    end, _, place = max(ends, default=(-1, 0, 0))
    return -place if end >= 0 else None


def _end_of(choice: str, text: str) -> int:
    """Where the last mention of a choice ends, -1 without one."""
    found = list(re.finditer(rf"(?<!\w){re.escape(choice)}(?!\w)", text)) if choice else []
    return found[-1].end() if found else -1


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold().rstrip(".")
