"""Stop strings, found in the text as it grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CONTEXT = 4  # tokens decoded before the new ones, since a tokenizer may write a first token differently


class StopWatch:
    """Watches one continuation for stop strings; its text is decoded piece by piece.

    A piece is read once it decodes without a broken character at its end, so a character made of several tokens
    counts when it is whole. Tokens are never made from text.

    Args:
        tokenizer: decodes; special tokens count as their text.
        stop: the strings.
        tokens: the list of ids that grows.
        start: index of the first token whose text may hold a stop string.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], tokens: list[int], start: int):
        self.tokenizer, self.stop, self.tokens = tokenizer, stop, tokens
        self.read, self.anchor = start, max(0, start - CONTEXT)
        self.tail = ""
        self.keep = max(map(len, stop)) - 1

    def found(self) -> bool:
        """Whether the tokens that came since the last call complete a stop string."""
        known = self._decode(self.tokens[self.anchor : self.read])
        text = self._decode(self.tokens[self.anchor :])
        if len(text) <= len(known) or text.endswith("\ufffd"):
            return False
        self.tail += text[len(known) :]
        self.read = len(self.tokens)
        self.anchor = max(self.anchor, self.read - CONTEXT)
        hit = any(string in self.tail for string in self.stop)
        self.tail = self.tail[-self.keep :] if self.keep else ""
        return hit

    def copy(self, tokens: list[int]) -> StopWatch:
        """A watch over another list with the same tokens so far."""
        other = StopWatch(self.tokenizer, self.stop, tokens, self.read)
        other.anchor, other.tail = self.anchor, self.tail
        return other

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string."""
    places = [place for place in (text.find(string) for string in stop) if place >= 0]
    return text[: min(places)] if places else text
