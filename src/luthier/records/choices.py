"""Which of several choices an answer names: by its text, its letter, its index (from 0) or its number (from 1)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Literal

Naming = Literal["auto", "text", "letter", "index", "number"]
NAMINGS: tuple[Naming, ...] = ("text", "letter", "index", "number")
"""In the order in which they are tried."""
IN_WORDS: Mapping[str, str] = {
    "text": "the texts of choices",
    "letter": "letters of choices",
    "index": "indices of choices, from 0",
    "number": "numbers of choices, from 1",
}
_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\].:]{0,2}")
_LETTER_AND_TEXT = re.compile(r"[(\[]?([A-Za-z])[)\].:]{1,2}\s+(.+)", re.DOTALL)
_INDEX = re.compile(r"(\d{1,3})(?:\.0)?")


@dataclass(frozen=True)
class Choices:
    """The choices of a record: their texts, and the labels that stand for them, `A` for the first unless it has own."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]


def read_choices(column: Any) -> Choices | None:
    """The choices in a column: a list of texts or numbers, or {text: [...], label: [...]}; None if it holds neither."""
    labels: Any = None
    if isinstance(column, Mapping) and "text" in column:
        column, labels = column["text"], column.get("label") or column.get("labels")
    if not isinstance(column, list | tuple) or not all(_is_text(text) for text in column) or len(column) < 2:
        return None
    texts = tuple(str(text) for text in column)
    if not isinstance(labels, list | tuple) or len(labels) != len(texts):
        labels = ascii_uppercase[: len(texts)]
    return Choices(texts, tuple(str(label) for label in labels))


def _is_text(text: Any) -> bool:
    return (isinstance(text, str) and text != "") or (isinstance(text, int | float) and not isinstance(text, bool))


def chosen(answer: str, choices: Choices, naming: Naming = "auto") -> int | None:
    """Index of the choice that a whole answer names; None if it names none, or several of the same text.

    Args:
        naming: how the answer names it; `auto` takes the first of NAMINGS by which it names one.
    """
    if naming == "auto":
        indices = (chosen(answer, choices, way) for way in NAMINGS)
        return next((index for index in indices if index is not None), None)
    answer = answer.strip()
    if naming == "text":
        return _by_text(answer, choices)
    if naming == "letter":
        return _by_label(answer, choices)
    match = _INDEX.fullmatch(answer)
    index = None if match is None else int(match[1]) - (naming == "number")
    return index if index is not None and 0 <= index < len(choices.texts) else None


def _by_text(answer: str, choices: Choices) -> int | None:
    for normal in (str.strip, lambda text: " ".join(text.split()).casefold().rstrip(".")):
        same = [index for index, text in enumerate(choices.texts) if normal(text) == normal(answer)]
        if same:
            return same[0] if len(same) == 1 else None
    return None


def _by_label(answer: str, choices: Choices) -> int | None:
    if answer in choices.labels:
        return choices.labels.index(answer)
    match = _LETTER.fullmatch(answer)
    if match is not None and match[1].upper() in choices.labels:
        return choices.labels.index(match[1].upper())
    match = _LETTER_AND_TEXT.fullmatch(answer)  # `B. a dog`: both must be of one choice
    if match is not None and match[1].upper() in choices.labels:
        index = choices.labels.index(match[1].upper())
        return index if _by_text(match[2], choices) == index else None
    return None


def naming_of(answers: Sequence[tuple[str, Choices]]) -> tuple[Naming, str]:
    """How the answers of a set name their choices, and that in words.

    The first of NAMINGS by which every answer names a choice; `auto`, each answer for itself, if there is none. Texts
    that are numbers or letters may fit in several ways, of which the words then name the others.
    """
    fitting: list[Naming] = [
        way for way in NAMINGS if all(chosen(answer, choices, way) is not None for answer, choices in answers)
    ]
    if not fitting:
        return "auto", "each answer is read for itself"
    first: Naming = fitting[0]
    words = f"the answers are {IN_WORDS[fitting[0]]}"
    others: list[Naming] = [way for way in fitting[1:] if any(_differs(pair, first, way) for pair in answers)]
    if others:
        ways = " or ".join(f"`{way}`" for way in others)
        words += f"; they could be {' or '.join(IN_WORDS[way] for way in others)}: if so, set `answers` to {ways}"
    return first, words


def _differs(pair: tuple[str, Choices], first: Naming, second: Naming) -> bool:
    return chosen(*pair, first) != chosen(*pair, second)


def labelled(answer: str, choices: Choices, naming: Naming) -> tuple[str, ...]:
    """All choices named as the answer names its own: for `(B)` these are `(A)`, `(B)`, `(C)`.

    Args:
        answer: names a choice by `naming`, which is not `text`.
    """
    answer = answer.strip()
    if naming in ("index", "number"):
        return tuple(str(index + (naming == "number")) for index in range(len(choices.texts)))
    match = re.match(r"([(\[]?)([A-Za-z])([)\].:]{0,2})", answer)
    if answer in choices.labels or match is None:
        return choices.labels
    before, letter, behind = match.groups()
    labels = [label.lower() if letter.islower() else label for label in choices.labels]
    return tuple(f"{before}{label}{behind}" for label in labels)


def written(choices: Choices) -> str:
    """The choices as lines of a prompt, each behind its label, as in `A. a dog`, unless it begins with that itself."""
    pairs = list(zip(choices.labels, choices.texts, strict=True))
    if all(re.match(rf"[(\[]?{re.escape(label)}[)\].:]", text) for label, text in pairs):
        return "\n".join(choices.texts)
    return "\n".join(f"{label}. {text}" for label, text in pairs)


def lists_choices(prompt: str, choices: Choices) -> bool:
    """Whether a prompt lists the choices: then the model answers by their labels, else by their texts."""
    return all(text.strip() in prompt for text in choices.texts)
