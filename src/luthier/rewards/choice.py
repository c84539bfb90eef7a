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
    """1 for an answer that names the right one of the record's choices, by letter or by text, else 0.

    An answer that equals a choice's text names that choice. Otherwise the last letter counts (A is the first choice):
    a letter in brackets, before punctuation or the end, after "answer", "option", "choice" or "is", or at the
    beginning. Without a letter, the choice whose text ends last counts; if one choice contains another, the longer.
    None if the gold answer names no choice.
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

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.column,)

    def score(self, answer: Answer) -> float | None:
        choices = [str(choice) for choice in answer.record.fields.get(self.column) or ()]
        right = _named(answer.gold, choices)
        return None if right is None else float(_named(answer.text, choices) == right)


def _named(text: str, choices: list[str]) -> int | None:
    """Index of the choice that a text names; None if it names none."""
    normal, normal_choices = _normal(text), [_normal(choice) for choice in choices]
    if normal in normal_choices:
        return normal_choices.index(normal)
    # One of the pattern's four groups matched; the others are empty.
    letters = ["".join(groups) for groups in LETTER.findall(text)]
    indices = [ord(letter) - ord("A") for letter in letters]
    valid = [index for index in indices if index < len(choices)]
    if valid:
        return valid[-1]
    # Of choices that end at the same character the longer wins, then the first of the list.
    mentions = [(_end_of(choice, normal), len(choice), -index) for index, choice in enumerate(normal_choices)]
    end, _, negative_index = max(mentions, default=(-1, 0, 0))
    return -negative_index if end >= 0 else None


def _end_of(choice: str, text: str) -> int:
    """Index behind the last mention of a choice; -1 if the text does not mention it."""
    mentions = list(re.finditer(rf"(?<!\w){re.escape(choice)}(?!\w)", text)) if choice else []
    return mentions[-1].end() if mentions else -1


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold().rstrip(".")
