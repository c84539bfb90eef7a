"""Answers out of free text: the last number, the first JSON object. No input makes them fail or hang."""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal, InvalidOperation
from typing import Any

LONGEST = 400  # digits of a number; a longer run is no answer
TRIES = 200  # opening braces tried as the start of an object

_DIGITS = rf"\d{{1,{LONGEST}}}"
NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-+−–]?)[$€£¥]?(?P<inner_sign>[-−]?)"
    r"(?:(?P<grouped>\d{1,3}(?:[,'’\u00a0\u202f]\d{3})+(?!\d))|(?P<whole>" + _DIGITS + r"(?!\d)))?"
    r"(?P<decimals>\." + _DIGITS + r"(?!\d))?(?(grouped)|(?(whole)|(?(decimals)|(?!))))"
    r"(?:[eE](?P<power>[-+]?\d{1,3})(?!\d))?"
    r"(?:[ ]?/[ ]?(?P<below>" + _DIGITS + r")(?![\d/]))?"
)
LATEX_FRACTION = re.compile(r"\\[dt]?frac\{(-?" + _DIGITS + r")\}\{(" + _DIGITS + r")\}")
DATE = re.compile(r"\d{1,4}(?:/\d{1,4}){2,}")
MIXED = re.compile(r"(?<![\w./])(?P<sign>[-−]?)(?P<whole>\d{1,9}) (?P<above>\d{1,9})/(?P<below>\d{1,9})(?![\d/])")


def parse_number(text: str, after: str | None = None) -> Decimal | None:
    """The number that a text gives as its answer.

    Signs, thousands separators, currency signs, units after the number, decimals, powers of ten, fractions
    (3/4, 1 1/2, LaTeX) are read; a percent sign is a unit. A minus after a word or number is an operator.

    Args:
        text: any text.
        after: take the first number after the last occurrence of this mark (None if the mark is missing).
            Without it `####` is looked for, and where that is missing too, the last number counts.
    """
    found = number_and_rest(text, after)
    return None if found is None else found[0]


def number_and_rest(text: str, after: str | None = None) -> tuple[Decimal, str] | None:
    """As `parse_number`, with what stands behind the number."""
    mark = after if after is not None else "####"
    place = text.rfind(mark)
    if place < 0 and after is not None:
        return None
    text = _plain_numbers(text if place < 0 else text[place + len(mark) :])
    matches = list(NUMBER.finditer(text))
    for match in reversed(matches) if place < 0 else matches:
        if (value := _value(match)) is not None:
            return value, text[match.end() :]
    return None


def parse_json(text: str) -> dict[str, Any] | list[Any] | None:
    """The JSON value that a text gives as its answer: the whole text, else a fenced block, else an object in it.

    Strict: NaN, infinities and names written twice are not JSON. A list counts only when it is the whole text
    or block, since prose is full of brackets.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse, parse_float=_finite)
    fenced = text.split("```")[1::2][:TRIES]
    for block in (text, *(re.sub(r"\A\w+\s", "", block) for block in fenced)):
        value = _decoded(decoder, block.strip(), whole=True)
        if isinstance(value, dict | list):
            return value
    start = -1
    for _ in range(TRIES):
        start = text.find("{", start + 1)
        if start < 0:
            return None
        value = _decoded(decoder, text[start:], whole=False)
        if value is not None:
            return value
    return None


def _plain_numbers(text: str) -> str:
    """The text with its fractions in one form, and no dates that look like them."""
    text = LATEX_FRACTION.sub(r" \1/\2 ", text)
    return MIXED.sub(_improper, DATE.sub(lambda match: match[0].replace("/", " "), text))


def _improper(match: re.Match[str]) -> str:
    above = int(match["whole"]) * int(match["below"]) + int(match["above"])
    return f"{match['sign']}{above}/{match['below']}"


def _value(match: re.Match[str]) -> Decimal | None:
    digits = re.sub(r"\D", "", match["grouped"] or "") or match["whole"] or "0"
    try:
        value = Decimal(f"{digits}{match['decimals'] or ''}e{match['power'] or 0}")
        if match["below"] is not None:
            value /= Decimal(match["below"])
    except (InvalidOperation, ZeroDivisionError, ArithmeticError):
        return None
    negative = match["sign"] in ("-", "−", "–") or match["inner_sign"] != ""
    return -value if negative else value


def _decoded(decoder: json.JSONDecoder, text: str, whole: bool) -> Any:
    try:
        value, end = decoder.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if not whole or end == len(text) else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name is written twice")
    return made


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is out of range")
    return value


def boxed(text: str) -> str | None:
    r"""What the last complete `\boxed{...}` of a text holds, its own braces included; None without one."""
    for place in reversed([match.end() for match in re.finditer(r"\\?boxed\s*\{", text)][-TRIES:]):
        depth = 1
        for index in range(place, len(text)):
            depth += {"{": 1, "}": -1}.get(text[index], 0)
            if depth == 0:
                return text[place:index].strip()
    return None
