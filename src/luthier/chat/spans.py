"""A record as text with the spans that the model must write, and the notes that a record may carry."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass

# Notes on a record; the doctor counts the records with each note.
ALTERED = "earlier answers that the chat template rewrites: context only, not trained"
UNCLOSED = "earlier answers without the template's end-of-turn text: their end is not trained"
SCAFFOLD = "answers after text of the template's own (such as an empty thinking block): context, not trained"
UNREASONED = "answers whose reasoning_content the template leaves out: only the rest is trained"
OPENING = "answers that do not continue the template's generation prompt: prompts leave its last text out"
EMPTY = "empty assistant turns: context, not trained"
UNCALLED = "tool calls that the chat template leaves out: the answers that hold them are context, not trained"
UNSPOKEN = "text beside tool calls that the chat template leaves out: only the calls are trained"
MINGLED = "calls around which the chat template writes text of other messages: context, not trained"
PYTHON = "arguments of tool calls that the chat template writes as Python does (True, 'text'), not as JSON"
INDENTED = "answers whose first line loses its leading spaces in the chat template: trained without them"
CONTROL = "control tokens of the tokenizer in their text, which the model reads as such"
BEGUN = "text that begins with the BOS token: it is written once"
RENUMBERED = "ids of tool calls that the chat template refuses: the calls are numbered instead"
NAMED = "tool results without a name: the name of the call that they answer is written"

TAG_ENDS = (">", "]")
"""Last letters of tags, which a tokenizer may or may not read as one token."""


@dataclass(frozen=True)
class Span:
    """Characters [start, end) that the model must write, among them `answer`, the text of the user."""

    start: int
    end: int
    answer: str


@dataclass(frozen=True)
class Rendered:
    """A record as text. `answer_start`: character at which the last answer begins; None for text without a prompt."""

    text: str
    spans: tuple[Span, ...]
    answer_start: int | None
    special_tokens: bool  # whether the tokenizer adds its own, such as BOS; templates write theirs as text
    close: bool  # whether the EOS token is appended as a target
    notes: tuple[str, ...] = ()


def squeeze(text: str, normalise: Callable[[str], str] | None = None) -> str:
    """Text without white space and in one Unicode form, which tokenizers and templates may change without harm."""
    if normalise is not None:
        text = normalise(text)
    return "".join(unicodedata.normalize("NFKC", text).replace("\u2581", "").split())


def common_start(left: str, right: str) -> str:
    """The longest text with which both begin."""
    shortest = min(len(left), len(right))
    if left[:shortest] == right[:shortest]:
        return left[:shortest]
    low, high = 0, shortest  # they agree in `low` letters and differ within `high`
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if left[low:middle] == right[low:middle] else (low, middle)
    return left[:low]


def border(shared: str, rests: tuple[str, str], special: Collection[str]) -> int:
    """The last character of `shared` at which both texts that begin with it may begin something new.

    `shared` may end within a word or a control token of both, whose first letters are the same.
    """
    if shared.endswith(TAG_ENDS) or all(
        not rest or rest[0].isspace() or any(map(rest.startswith, special)) for rest in rests
    ):
        return len(shared)
    ends = [shared.rfind(token) + len(token) for token in special if token in shared]
    ends += [shared.rfind(end) + 1 for end in TAG_ENDS]
    space = next((index + 1 for index in range(len(shared) - 1, -1, -1) if shared[index].isspace()), 0)
    return max([*ends, space])


def start_without_space(text: str, start: str) -> str | None:
    """What `text` begins with, if that is `start` apart from white space; else None."""
    stop = 0
    for letter in start:
        if letter.isspace():
            continue
        while stop < len(text) and text[stop].isspace():
            stop += 1
        if not text.startswith(letter, stop):
            return None
        stop += 1
    return text[:stop]
