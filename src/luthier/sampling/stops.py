"""Stop strings, searched in the text as it grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CONTEXT = 4  # tokens decoded before the new ones, since a tokenizer may write a first token differently


class StopWatch:
    """Watches one continuation for stop strings; its text is decoded piece by piece.

    New tokens are decoded once their text does not end in a broken character, so a character of several tokens counts
    when it is complete. Text is never encoded: tokens drawn by the model may not be those of the tokenizer.

    Args:
        tokenizer: decodes; special tokens count as their text.
        stop: the stop strings.
        tokens: the list of token ids that grows.
        start: index of the first token whose text may belong to a stop string.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], tokens: list[int], start: int):
        self.tokenizer, self.stop, self.tokens = tokenizer, stop, tokens
        self.read, self.anchor = start, max(0, start - CONTEXT)
        self.tail = ""
        # A stop string may span two pieces; of the earlier piece it then has at most all its letters but one.
        self.keep = max(map(len, stop)) - 1

    def reached(self) -> bool:
        """Whether the tokens added since the last call complete a stop string."""
        known = self._decode(self.tokens[self.anchor : self.read])
        text = self._decode(self.tokens[self.anchor :])
        # U+FFFD at the end is the beginning of a character whose other bytes are in tokens to come.
        if len(text) <= len(known) or text.endswith("\ufffd"):
            return False
        self.tail += text[len(known) :]
        self.read = len(self.tokens)
        self.anchor = max(self.anchor, self.read - CONTEXT)
        reached = any(string in self.tail for string in self.stop)
        self.tail = self.tail[-self.keep :] if self.keep else ""
        return reached

    def copy(self, tokens: list[int]) -> StopWatch:
        """A watch over another list that holds the same tokens so far."""
        other = StopWatch(self.tokenizer, self.stop, tokens, self.read)
        other.anchor, other.tail = self.anchor, self.tail
        return other

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Index in the text where the first stop string begins; None where there is none."""
    indices = [text.find(string) for string in stop]
    return min((index for index in indices if index >= 0), default=None)


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: first_stop(text, stop)]
