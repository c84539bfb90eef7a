r"""Where in a text its mathematical answer is.

The answer is the content of the last `\boxed{}`, else what follows the last `####`, else the whole of a text without
words, else what follows the last "answer is", else the last formula between dollar signs, else the last number with
the formula around it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from luthier.answers.formulas import CONSTANTS, FUNCTIONS
from luthier.answers.notation import plain_signs
from luthier.answers.reading import read_answer
from luthier.answers.units import MULTIPLES, read_unit
from luthier.data.parsers import NUMBER, boxed, signed_words

MARK = "####"
_ANSWER_IS = re.compile(r"\banswer[*_]*[^\S\n]?(?:is|:|=)[*_:]*[^\S\n]*(?=\S)", re.IGNORECASE)
_OPEN_BOX = re.compile(r"\\?boxed\s*\{|\\boxed(?![a-zA-Z])")
"""A box that is not closed, as in an answer that was cut off, or that was written without braces."""
_SPAN = re.compile(r"\$\$([^$]{1,400})\$\$|\$([^$]{1,400})\$|\\\(([^$]{1,400}?)\\\)|\\\[([^$]{1,400}?)\\\]", re.DOTALL)
_WHOLE = 200
"""Characters of a text that may be an answer without any word around it."""
_AROUND = 1000
"""Characters before and behind the last digit of a text in which its last formula is searched."""
_MOST_TOKENS = 12
_WORD = re.compile(r"[^\W\d_]{2,}(?:['’./-][^\W\d_]+)*\.?")
_CLOSING_TAG = re.compile(r"</([A-Za-z][\w-]{0,20})>")
_CONTROL = re.compile(r"<\|[\w ]{1,40}\|>")
_NUMBERED = re.compile(r"\A\(?(?:\d{1,2}|[a-z])[.)]\s+(?=[-−$]*\d)")
"""The number of a point in a list, before its content."""
_HYPHENED = re.compile(r"\d-[A-Za-z]{2}")
_STOP = re.compile(r"[.;:!?][*\"')\]]*\Z")
_AROUND_TOKENS = "()[]'\"*`#.,;:!?"


def answer_of(text: str) -> str:
    """The part of a text that is its answer; empty if it gives none."""
    if (box := boxed(text)) is not None:
        return box
    if MARK in text:
        line = _first_line(text[text.rfind(MARK) + len(MARK) :])
        return _leading(line.split()) or line[:_WHOLE].strip()
    text = _undecorated(text)
    short = len(text) <= _WHOLE and "\n" not in text
    if short and ("\\text{" in text or (not _has_words(text) and _reads(text))):
        return text
    answer = _named(text) or _last_span(text) or _last_number(text)
    return answer or (text if short and not re.search(r"\s|\d", text) else "")


def _undecorated(text: str) -> str:
    """The text without boxes that are open, tags, numbers of points and exclamation marks in a row."""
    text = signed_words(_OPEN_BOX.sub(" ", plain_signs(text))).strip()
    if "</" in text or "<|" in text:
        for tag in {match[1] for match in _CLOSING_TAG.finditer(text)}:
            text = text.replace(f"<{tag}>", " ").replace(f"</{tag}>", " ")
        text = _CONTROL.sub(" ", text).strip()
    return _NUMBERED.sub("", re.sub(r"!{2,}", "", text))


def _first_line(text: str) -> str:
    return text.lstrip()[: 2 * _WHOLE].partition("\n")[0]


def _has_words(text: str) -> bool:
    return any(_is_word(token) and len(token.strip(_AROUND_TOKENS)) > 1 for token in text.split())


def _reads(text: str) -> bool:
    return any(reading.formula is not None for reading in read_answer(text))


def _is_word(token: str) -> bool:
    bare = token.strip(_AROUND_TOKENS)
    return bare in ("a", "A", "I") or (_WORD.fullmatch(bare) is not None and bare not in (*FUNCTIONS, *CONSTANTS))


def _named(text: str) -> str:
    """What follows the last "answer is", if no other number of its sentence follows that."""
    matches = list(_ANSWER_IS.finditer(text))
    if not matches:
        return ""
    tokens = _first_line(text[matches[-1].end() :]).split()
    answer = _leading(tokens)
    length = len(answer.split())
    if not answer or (_STOP.search(tokens[length - 1]) is not None):
        return answer
    rest = tokens[length:]
    end = next((index for index, token in enumerate(rest) if re.search(r"[.!?]\Z", token)), len(rest))
    sentence = " ".join(rest[: end + 1])
    if re.search(r"\d", sentence) or (sentence and re.search(r"[\d\\]", answer) is None):
        return ""
    return answer


def _leading(tokens: Sequence[str]) -> str:
    """The formula at the beginning of a line, with its unit; empty if the line begins otherwise."""
    tokens, length = tokens[:_MOST_TOKENS], 0
    for index, token in enumerate(tokens):
        joins = token in ("or", "and") and 0 < index < len(tokens) - 1 and not _is_word(tokens[index + 1])
        if _is_word(token) and not joins:
            break
        length = index + 1
        if _STOP.search(token):
            break
    for end in range(length, 0, -1):
        words = _unit_words(tokens[end:]) if end == length and not re.search(r"[.,;:!?]\Z", tokens[end - 1]) else 0
        if answer := _readable(" ".join(tokens[: end + words])):
            return answer
    return ""


def _readable(chunk: str) -> str:
    """The chunk, or the chunk without signs of punctuation around it, if that is a formula; else empty."""
    chunk = chunk.rstrip("!?")
    if re.fullmatch(r"[(\[]\d{1,3}(?:,\d{3})+(?:\.\d+)?[)\]]", chunk):  # a number in brackets, in a sentence
        chunk = chunk[1:-1]
    for candidate in (chunk, chunk.rstrip("*\"'`)].,;:="), chunk.strip(_AROUND_TOKENS + "{}=")):
        if candidate and not _has_unread_words(candidate) and not _HYPHENED.search(candidate) and _reads(candidate):
            return candidate
    return ""


def _has_unread_words(chunk: str) -> bool:
    """Whether a chunk has words other than those of a unit behind it: `so 5` is no formula, and `5 cm` is one."""
    tokens = chunk.split()
    last = max((index for index, token in enumerate(tokens) if not _is_word(token)), default=-1)
    return any(_is_word(token) and token not in ("or", "and") for token in tokens[: last + 1])


def _unit_words(tokens: Sequence[str]) -> int:
    """How many words at the beginning name a unit, percent, degrees, or a multiple such as million."""
    for length in (3, 2, 1):
        words = " ".join(tokens[:length]).strip(_AROUND_TOKENS)
        if len(tokens) < length or any(re.search(r"[.,;:!?]\Z", token) for token in tokens[: length - 1]):
            continue
        first, _, rest = words.partition(" ")
        if first.lower() in MULTIPLES and (not rest or read_unit(rest)):
            return length
        if re.fullmatch(r"per ?cent|degrees?|degrees (?:celsius|fahrenheit)", words, re.IGNORECASE) or read_unit(words):
            return length
    return 0


def _last_span(text: str) -> str:
    """The last formula between dollar signs or LaTeX's brackets, if no digit follows it."""
    spans = list(_SPAN.finditer(text[-2 * _AROUND :]))
    if not spans or re.search(r"\d", spans[-1].string[spans[-1].end() :]):
        return ""
    content = next(group for group in spans[-1].groups() if group is not None).strip()
    formula = re.search(r"[\d\\]", content) is not None and not _has_words(content)
    return content if formula and _reads(content) else ""


def _last_number(text: str) -> str:
    """The last number of a text, with the formula that it is a part of."""
    position = max(text.rfind(digit) for digit in "0123456789")
    start = max(0, position - _AROUND)
    window = text[start : position + _AROUND]
    numbers = list(NUMBER.finditer(window))
    if not numbers:
        return ""
    number = numbers[-1]
    begin = window.rfind("\n", 0, number.end() - 1) + 1
    end = window.find("\n", number.end())
    matches = list(re.finditer(r"\S+", window[begin : end if end >= 0 else len(window)]))
    offset = number.end() - 1 - begin
    index = next(index for index, match in enumerate(matches) if match.start() <= offset < match.end())
    tokens = [match[0] for match in matches]
    for first in range(_left(tokens, index), index + 1):
        for last in range(_right(tokens, index), index, -1):
            punctuated = re.search(r"[.,;:!?]\Z", tokens[last - 1])
            words = 0 if punctuated else _unit_words(tokens[last:])
            if answer := _readable(" ".join(tokens[first : last + words])):
                return answer
    return _readable(re.split(r"[:=(\[]", tokens[index])[-1]) or _plain_number(tokens[index], number[0])


def _plain_number(token: str, number: str) -> str:
    """A number in a token that is no formula, as in `12apples`; empty in one that may be a formula."""
    return "" if re.search(r"[\\^_{}*!:=<>√±]|\d[-/,.]\d.*[-/,.]\d", token) else number


def _left(tokens: Sequence[str], index: int) -> int:
    """The first token of the formula that has the token `index` in it."""
    first = index
    while first > max(0, index - _MOST_TOKENS):
        token, inner = tokens[first - 1], " ".join(tokens[first : index + 1])
        joins = token == "or" and first > 1 and not _is_word(tokens[first - 2])
        # A comma joins within a bracket alone: `(1, 2)` is a pair, and `in 2020, 5` two numbers.
        open_bracket = sum(map(inner.count, ")]}")) > sum(map(inner.count, "([{"))
        if (_is_word(token) and not joins) or _STOP.search(token) or (token.endswith(",") and not open_bracket):
            break
        first -= 1
    return first


def _right(tokens: Sequence[str], index: int) -> int:
    """One behind the last token of the formula that has the token `index` in it."""
    end = index + 1
    while end < min(len(tokens), index + _MOST_TOKENS // 2):
        if _is_word(tokens[end]) or re.search(r"[.,;:!?]\Z", tokens[end - 1]):
            break
        end += 1
    return end
