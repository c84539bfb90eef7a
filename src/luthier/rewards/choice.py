"""Multiple choice, answered in words."""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field

from luthier.rewards.base import Answer, Reward

LETTER = re.compile(
    r"\(([A-Z])\)"
    r"|\A\W*([B-HJ-Z])(?![\w'’])"  # A and I begin sentences
    r"|(?<![\w'’])([A-Z])(?=[).:,;*]|\s*\Z)"
    r"|\b(?:answer|option|choice|is)[\s:*]*([A-Z])(?![\w'’])"
)


class Choice(Reward):
    """1 for an answer that names the right one of the record's choices, by its letter or by its text.

    An answer that is a choice's text counts as that choice. Else its last letter counts (A is the first choice): one
    in brackets, before a mark or the end, behind "answer", "option", "choice" or "is", or at the beginning. Else the
    choice whose text comes last, and where one choice contains another, the longer. `column` names the list of
    choices. None where the gold answer names none.
    """

    SETTINGS: ClassVar = ({}, {"column": "options"})
    EXAMPLES: ClassVar = (
        ({}, {"text": "Not (A), so (B).", "gold": "yes", "choices": ["no", "yes"]}, 1.0),
        ({}, {"text": "a dog", "gold": "A", "choices": ["a cat", "a dog"]}, 0.0),
        ({}, {"text": "I think it is the big cat", "gold": "big cat", "choices": ["cat", "big cat"]}, 1.0),
        ({}, {"text": "A", "gold": "neither", "choices": ["no", "yes"]}, None),
    )

    column: str = Field(
        "choices",
        description="Column of the record that lists its choices, in the order of their letters (A is the first).",
    )

    def score(self, answer: Answer) -> float | None:
        choices = [str(choice) for choice in answer.record.fields.get(self.column) or ()]
        right = _named(answer.gold, choices)
        return None if right is None else float(_named(answer.text, choices) == right)


def _named(text: str, choices: list[str]) -> int | None:
    """Index of the choice that a text names."""
    plain = [_plain(choice) for choice in choices]
    if _plain(text) in plain:
        return plain.index(_plain(text))
    named = ["".join(found) for found in LETTER.findall(text)]
    letters = [place for letter in named if (place := ord(letter) - ord("A")) < len(choices)]
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
