"""Multiple choice, answered in words."""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field

from luthier.records.choices import NAMINGS, Choices, Naming, chosen, read_choices
from luthier.rewards.base import Answer, Judged, Reward

ANSWERED = re.compile(
    r"(?i:\banswer\b[\s:*]*(?:(?:is|would be)\b)?[\s:*]*)(?:[(\[]?([A-Z])(?![\w'’])|[(\[]?([a-z])(?=[)\].:,;*]|\s*\Z))"
)
"""A letter behind "answer (is)"; a small one only before punctuation or the end, since `a` is a word."""
LETTER = re.compile(
    r"\(([A-Z])\)"
    r"|\A\W*([B-HJ-Z])(?![\w'’])"  # A and I begin sentences
    r"|(?<![\w'’])([A-Z])(?=[).:,;*]|\s*\Z)"
    r"|\b(?:answer|option|choice|is)[\s:*]*([A-Z])(?![\w'’])"
)


class Choice(Reward):
    """1 for an answer that names the right one of the record's choices, by letter or by text, else 0.

    An answer that equals a choice's text, its letter or (where the gold answer is an index) its index names that
    choice. Otherwise the last letter behind "answer" counts (A is the first choice), then the last letter in brackets,
    before punctuation or the end, after "option", "choice" or "is", or at the beginning. Without a letter, the choice
    whose text ends last counts; if one choice contains another, the longer.
    None if the gold answer names no choice. The part `ambiguous` is 1 where `auto` reads the gold answer as a text
    that could also be a letter or index of another choice.
    """

    SETTINGS: ClassVar = ({}, {"column": "options"}, {"answers": "index"})
    EXAMPLES: ClassVar = (
        ({}, {"text": "Not (A), so (B).", "gold": "yes", "choices": ["no", "yes"]}, 1.0),
        ({}, {"text": "a dog", "gold": "A", "choices": ["a cat", "a dog"]}, 0.0),
        ({}, {"text": "The answer is A. Option B is wrong.", "gold": "0", "choices": ["no", "yes"]}, 1.0),
        ({"answers": "index"}, {"text": "1", "gold": "1", "choices": ["1", "2", "3"]}, 1.0),
        ({}, {"text": "I think it is the big cat", "gold": "big cat", "choices": ["cat", "big cat"]}, 1.0),
        ({}, {"text": "A", "gold": "neither", "choices": ["no", "yes"]}, None),
    )

    column: str = Field(
        "choices",
        description="Column of the record that lists its choices, in the order of their letters (A is the first).",
    )
    answers: Naming = Field(
        "auto",
        description="How gold answers name the right choice: by its `text`, `letter`, `index` (from 0) or `number` "
        "(from 1). `auto` takes the first of these by which an answer names one.",
    )

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.column,)

    def score(self, answer: Answer) -> Judged:
        choices = read_choices(answer.record.fields.get(self.column))
        if choices is None:
            return Judged(None)
        ways: list[Naming] = [*NAMINGS] if self.answers == "auto" else [self.answers]
        fitting: list[Naming] = [way for way in ways if chosen(answer.gold, choices, way) is not None]
        if not fitting:
            return Judged(None)
        naming = fitting[0]
        right = chosen(answer.gold, choices, naming)
        named = float(_named(answer.text, choices, naming) == right)
        return Judged(named, {"ambiguous": 1.0} if self.answers == "auto" and _ambiguous(answer.gold, choices) else {})


def _ambiguous(gold: str, choices: Choices) -> bool:
    """Whether a gold answer is the text of one choice, and the letter or index of another."""
    by_text = chosen(gold, choices, "text")
    others = {chosen(gold, choices, way) for way in ("letter", "index")}
    return by_text is not None and bool(others - {None, by_text})


def _named(text: str, choices: Choices, naming: Naming) -> int | None:
    """Index of the choice that a text names; None if it names none."""
    ways: tuple[Naming, ...] = (naming, "text", "letter")
    whole = (chosen(text, choices, way) for way in ways)
    if (index := next((index for index in whole if index is not None), None)) is not None:
        return index
    labels = list(choices.labels)
    for pattern in (ANSWERED, LETTER):
        # One of the pattern's groups matched; the others are empty.
        letters = ["".join(groups).upper() for groups in pattern.findall(text)]
        if valid := [labels.index(letter) for letter in letters if letter in labels]:
            return valid[-1]
    # Of choices that end at the same character the longer wins, then the first of the list.
    normal, normal_choices = _normal(text), [_normal(choice) for choice in choices.texts]
    mentions = [(_end_of(choice, normal), len(choice), -index) for index, choice in enumerate(normal_choices)]
    end, _, negative_index = max(mentions, default=(-1, 0, 0))
    return -negative_index if end >= 0 else None


def _end_of(choice: str, text: str) -> int:
    """Index behind the last mention of a choice; -1 if the text does not mention it."""
    mentions = list(re.finditer(rf"(?<!\w){re.escape(choice)}(?!\w)", text)) if choice else []
    return mentions[-1].end() if mentions else -1


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold().rstrip(".")
