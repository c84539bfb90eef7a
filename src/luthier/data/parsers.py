"""Parsers of answers in free text: the last number, the first JSON object. No input makes them fail or hang."""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal, InvalidOperation
from typing import Any

LONGEST = 400  # digits of a number; a longer run of digits is no answer
TRIES = 200  # opening braces tried as the start of an object: each may cost a pass over the rest of the text

_DIGITS = rf"\d{{1,{LONGEST}}}"
NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-+−–]?)[$€£¥]?(?P<inner_sign>[-−]?)"
    r"(?:(?P<grouped>\d{1,3}(?:[,'’\u00a0\u202f]\d{3})+(?!\d))|(?P<whole>" + _DIGITS + r"(?!\d)))?"
    r"(?P<decimals>\." + _DIGITS + r"(?!\d))?(?(grouped)|(?(whole)|(?(decimals)|(?!))))"
    r"(?:[eE](?P<power>[-+]?\d{1,3})(?!\d))?"
    r"(?:[ ]?/[ ]?(?P<below>" + _DIGITS + r")(?![\d/]))?"
)
_LATEX_FRACTION = re.compile(
    r"(?P<sign>[-+−–]?)\\[dtc]?frac ?"
    r"(?:\{(?P<above>[-−]?" + _DIGITS + r")\}|(?P<digit>\d)) ?(?:\{(?P<below>[-−]?" + _DIGITS + r")\}|(?P<last>\d))"
)
_LONE_MINUS = re.compile(r"((?:\A|[\n(\[=:])[ ]*)[-−–] (?=[$€£¥]?\.?\d)")
"""A minus and a space behind no number or word: a sign, and no operator."""
UNCLEAR = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*,\d+(?:[.,]\d+)*(?!\w)")
"""Digits with a comma. What is no number with thousands separators is 3,5 or a list, which nobody can tell apart."""
_MULTIPLE = re.compile(r"\s?(hundred|thousand|million|billion|trillion|dozen)\b")
MULTIPLES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
"""Words behind a number, with the power of ten that they stand for."""
_TWO_NUMBERS = re.compile(r"\d\S*(?: [^\W\d]+)? or \Z")
_MINUS_WORD = re.compile(
    r"((?:\A|[=:(\n]|\b(?:is|are|was|equals|equal to)\b)[ $]{0,3})(?:minus|negative) (?=[$€£¥]?\.?\d)"
)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_POWER = re.compile(
    r"(?P<digits>(?<![\w.])\d{1,40}(?:\.\d{1,40})? ?(?:\\times|\\cdot|[×·*xX]) ?)?(?<![\d.])10"
    r"(?:(?: ?\^ ?|\*\*)(?:\{ ?(?P<braced>[-−+]?\d{1,3}) ?\}|(?P<bare>[-−+]?\d{1,3})(?!\d))"
    r"|(?P<raised>[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,3}))"
)
_WIDE = str.maketrans("０１２３４５６７８９．，＋－／％＄", "0123456789.,+-/%$")
DATE = re.compile(r"\d{1,4}(?:/\d{1,4}){2,}")
MIXED = re.compile(r"(?<![\w./])(?P<sign>[-−]?)(?P<whole>\d{1,9}) (?P<above>\d{1,9})/(?P<below>\d{1,9})(?![\d/])")


def parse_number(text: str, after: str | None = None) -> Decimal | None:
    """The number that a text gives as its answer; None without one.

    Reads signs, thousands separators, currency signs, units after the number, decimals, powers of ten and fractions
    (3/4, 1 1/2, LaTeX), and words such as million. A percent sign is a unit. A minus after a word or number is an
    operator. Digits with a comma that separates no thousands, such as 3,5, are no number: nobody knows what they mean.

    Args:
        text: any text.
        after: mark whose last occurrence the number follows; a text without the mark has no number. By default the
            mark is `####`, and a text without it gives its last number.
    """
    answer = number_and_rest(text, after)
    return None if answer is None else answer[0]


def number_and_rest(text: str, after: str | None = None) -> tuple[Decimal, str] | None:
    """The number of `parse_number`, and the text behind it."""
    mark = after if after is not None else "####"
    start = text.rfind(mark)
    if start < 0 and after is not None:
        return None
    text = _with_simple_fractions(text if start < 0 else text[start + len(mark) :])
    matches = list(NUMBER.finditer(text))
    unclear = _unclear(text)
    for match in reversed(matches) if start < 0 else matches:
        if any(first <= match.start() < last for first, last in unclear):
            return None
        if (number := _number(match)) is not None:
            return _multiplied(number, text[match.end() :])
    return None


def unclear_number(text: str) -> str | None:
    """The last digits of a text that a comma makes unclear, such as 3,5 or 1.234,56; None if the last are clear."""
    text = _with_simple_fractions(text)
    spans, matches = _unclear(text), list(NUMBER.finditer(text))
    if not spans or (matches and matches[-1].start() >= spans[-1][1]):
        return None
    return text[slice(*spans[-1])]


def names_two_numbers(text: str) -> bool:
    """Whether the last number of a text is the second of two that the text leaves open: `5 or 6`."""
    matches = list(NUMBER.finditer(text))
    return (
        bool(matches) and _TWO_NUMBERS.search(text[max(0, matches[-1].start() - 40) : matches[-1].start()]) is not None
    )


def _unclear(text: str) -> list[tuple[int, int]]:
    spans = []
    for match in UNCLEAR.finditer(text):
        if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", match[0]) is None:
            spans.append(match.span())
    return spans


def _multiplied(number: Decimal, rest: str) -> tuple[Decimal, str]:
    """The number times the word behind it (3 million), and the text behind both."""
    match = _MULTIPLE.match(rest)
    if match is None:
        return number, rest
    word = match[1]
    scaled = number * 12 if word == "dozen" else number.scaleb(MULTIPLES[word])
    return scaled, rest[match.end() :]


def parse_json(text: str) -> dict[str, Any] | list[Any] | None:
    """The JSON object or list that a text gives as its answer: the whole text, a fenced block, or an object in it.

    NaN, infinities and names written twice are not JSON. A list counts only if it is the whole text or block, since
    prose is full of brackets.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_unique_names, parse_constant=_refuse, parse_float=_finite)
    fenced = text.split("```")[1::2][:TRIES]
    # A fence may name its language, as in ```json.
    blocks = [text, *(re.sub(r"\A\w+\s", "", block) for block in fenced)]
    for block in blocks:
        parsed = _decoded(decoder, block.strip(), to_end=True)
        if isinstance(parsed, dict | list):
            return parsed
    start = -1
    for _ in range(TRIES):
        start = text.find("{", start + 1)
        if start < 0:
            return None
        parsed = _decoded(decoder, text[start:], to_end=False)
        if parsed is not None:
            return parsed
    return None


def _with_simple_fractions(text: str) -> str:
    """The text with fractions and mixed numbers written a/b, powers of ten 1e3, and without the slashes of dates."""
    text = re.sub(
        r"(?<=\d)(?:\{,\}|\\[,!])(?=\d{3}(?!\d))", ",", signed_words(text.translate(_WIDE).replace("\\$", "$"))
    )
    text = _POWER.sub(_exponent, text)
    text = _LONE_MINUS.sub(r"\1-", _LATEX_FRACTION.sub(_slashed, text))
    return MIXED.sub(_improper, DATE.sub(lambda match: match[0].replace("/", " "), text))


def signed_words(text: str) -> str:
    """The text with `minus 5` as -5 where a number may begin: `it is minus 5`, and not `7 minus 5`."""
    return _MINUS_WORD.sub(r"\1-", text)


def _slashed(match: re.Match[str]) -> str:
    """A LaTeX fraction as a/b, with the sign before it; a space keeps it apart from a word or number."""
    above, below = match["above"] or match["digit"], match["below"] or match["last"]
    negative = sum(text[:1] in ("-", "−", "–") for text in (match["sign"], above, below)) % 2
    sign = "-" if negative else "+" if match["sign"] else ""
    before = match.string[match.start() - 1 : match.start()]
    return f"{'' if sign or not before.isalnum() else ' '}{sign}{above.lstrip('-−')}/{below.lstrip('-−')} "


def _exponent(match: re.Match[str]) -> str:
    """A number times a power of ten in the form 1.5e3."""
    digits = re.match(r"[\d.]*", match["digits"] or "1")
    power = match["braced"] or match["bare"] or match["raised"].translate(_RAISED)
    return f"{digits[0] if digits else 1}e{power.replace('−', '-')}"


def _improper(match: re.Match[str]) -> str:
    above = int(match["whole"]) * int(match["below"]) + int(match["above"])
    return f"{match['sign']}{above}/{match['below']}"


def _number(match: re.Match[str]) -> Decimal | None:
    digits = re.sub(r"\D", "", match["grouped"] or "") or match["whole"] or "0"
    try:
        # Decimal rather than float: 0.1 is compared as written, and 400 digits are kept.
        number = Decimal(f"{digits}{match['decimals'] or ''}e{match['power'] or 0}")
        if match["below"] is not None:
            number /= Decimal(match["below"])
    except (InvalidOperation, ZeroDivisionError, ArithmeticError):
        return None
    negative = match["sign"] in ("-", "−", "–") or match["inner_sign"] != ""
    return -number if negative else number


def _decoded(decoder: json.JSONDecoder, text: str, to_end: bool) -> Any:
    """The JSON value at the start of the text; None without one, or if `to_end` and more text follows."""
    try:
        parsed, end = decoder.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return parsed if not to_end or end == len(text) else None


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("a name is written twice")
    return mapping


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is out of range")
    return number


def boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}` or `\fbox{...}`, inner braces included; None without one."""
    starts = [match.end() for match in re.finditer(r"(?:\\?boxed|\\fbox)\s*\{", text)]
    for start in reversed(starts[-TRIES:]):
        depth = 1
        for index in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[index], 0)
            if depth == 0:
                return text[start:index].strip()
    return None
