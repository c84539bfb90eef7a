"""How a mathematical answer is read: as a number with what stands around it, as a formula, or as text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from luthier.answers.equality import equal, scaled
from luthier.answers.formulas import CONSTANTS, FUNCTIONS, LONGEST, Node, Unreadable, parse_formula
from luthier.answers.notation import TEXT, latex_notation, plain_signs
from luthier.answers.units import CURRENCY, MULTIPLES, Unit, read_unit

_LONGEST_DRESSED = 2 * LONGEST
_NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
_PERCENT = re.compile(r"(?<!\s)\s*(?:\\?%|\bper ?cent)\Z", re.IGNORECASE)
_DEGREE = re.compile(r"(?<!\s)\s*(?:\^\s*\\circ|\bdegrees?\b)\s*(?P<scale>[CFK]?|celsius|fahrenheit)\Z", re.IGNORECASE)
_PRICE = re.compile(rf"(?P<sign>[-+]?)\s*(?P<mark>{CURRENCY})\s*(?P<number>.*)\Z", re.DOTALL)
_COST = re.compile(rf"(?P<number>.*[\d}}])\s*(?P<mark>{CURRENCY})\Z", re.DOTALL)
_UNIT = re.compile(
    r"(?P<number>.*[\d)}!])(?P<gap>\s*)(?P<words>\(?[A-Za-zμ][A-Za-zμ.'/]*(?:[ -]+[A-Za-z/][A-Za-z.'/]*){0,4}"
    r"(?:\s*\^\s*\{?[23]\}?)?\)?)\Z",
    re.DOTALL,
)
_ORDINAL = re.compile(r"\d(?:st|nd|rd|th)\Z")
_CALLED = re.compile(r"\A(?P<name>[A-Za-z]{3,}(?: [A-Za-z]+){0,4})\s*(?:=|:|\bis\b)\s*(?=\S)")
_DOLLAR = re.compile(r"(?<!\\)\$")
_LEADING = re.compile(r"\A(?:(?:=|≈|\\approx(?![a-z])|\\sim(?![a-z]))\s*|[A-Z]:\s+|[A-Za-z]\s*\([^()=]{1,20}\)\s*=\s*)")
"""What stands before an answer: `≈`, `A: `, or the name `P(A) =`."""
_DEGREE_FACTOR = Node("constant", (), "degree")


@dataclass(frozen=True)
class Reading:
    """One way to read an answer: a formula, and what was taken off it.

    Attributes:
        formula: None where the answer is no formula and can only be compared as text.
        text: the answer without layout.
        sign: `percent`, `degree`, or a degree of a scale of temperature.
        unit: the unit, if it is a known one.
    """

    formula: Node | None
    text: str
    sign: str = ""
    unit: Unit | None = None


def read_answer(answer: str) -> tuple[Reading, ...]:
    """The ways to read an answer, which is all of the text; there is always one."""
    if len(answer) > _LONGEST_DRESSED:  # no formula, and nothing to keep in a cache
        return (Reading(None, answer.strip()),)
    return _readings(answer)


@lru_cache(4096)
def _readings(answer: str) -> tuple[Reading, ...]:
    text = _undressed(answer)
    if len(text) <= LONGEST and not _is_words(text):
        readings = (_with_sign(text), _with_price(text), _with_unit(text), _bare(text))
        if readable := tuple(reading for reading in readings if reading is not None):
            return readable
    elif text.lower() in _NUMBER_WORDS:
        return (Reading(Node("number", (), Fraction(_NUMBER_WORDS.index(text.lower()))), text),)
    return (Reading(None, text),)


def _undressed(answer: str) -> str:
    r"""The answer without layout, quotes, a name before it, and the full stop of a sentence; `\text{}` is opened."""
    text = plain_signs(answer)
    if "\\begin" not in text:  # JSON within JSON doubles backslashes
        text = re.sub(r"\\\\(?=[A-Za-z$%{(\[])", r"\\", text)
    text = latex_notation(TEXT.sub(r" \1 ", text))
    if len(_DOLLAR.findall(text)) % 2 == 0:  # formulas stand between two, prices behind one
        text = _DOLLAR.sub(" ", text)
    text = text.strip().strip('*`"').strip()
    text = _LEADING.sub("", text)
    if (match := _CALLED.match(text)) and match["name"].split()[0] not in FUNCTIONS:
        text = text[match.end() :]
    return text.rstrip(" .,;:").strip()


def _is_words(text: str) -> bool:
    """Whether a text is words and no formula: letters alone, and more than single ones."""
    if re.fullmatch(r"[^\W\d_]+(?:[\s.,'-]+[^\W\d_]+)*", text) is None:
        return False
    return any(len(word) > 1 and word not in (*FUNCTIONS, *CONSTANTS) for word in re.split(r"[\s.,'-]+", text))


def _formula(text: str) -> Node | None:
    try:
        return parse_formula(text)
    except Unreadable:
        return None


def _bare(text: str) -> Reading | None:
    formula = _formula(text)
    return None if formula is None else Reading(formula, text)


def _with_sign(text: str) -> Reading | None:
    """A number of percent or degrees."""
    for pattern, sign in ((_PERCENT, "percent"), (_DEGREE, "degree")):
        match = pattern.search(text)
        if match is not None and (formula := _formula(text[: match.start()])) is not None:
            scale = (match["scale"] or "")[:1].upper() if sign == "degree" else ""
            return Reading(formula, text, sign + scale)
    return None


def _with_price(text: str) -> Reading | None:
    """A number with the sign of a currency before or behind it, and perhaps a word that multiplies it."""
    if (match := _PRICE.match(text)) is not None:
        number = match["sign"] + match["number"]
    elif (match := _COST.match(text)) is not None:
        number = match["number"]
    else:
        return None
    unit = read_unit(match["mark"].lstrip("\\").removeprefix("US"))
    inner = _with_unit(number) or _bare(number)
    if inner is None or (inner.unit is not None and inner.unit != unit):
        return None
    return Reading(inner.formula, text, "", unit)


def _with_unit(text: str) -> Reading | None:
    """A number with a unit: any words behind a space, or a known unit or the end of an ordinal without a space."""
    if _ORDINAL.search(text):
        return _bare(text[:-2])
    match = _UNIT.match(text)
    if match is None:
        return None
    words = match["words"].strip("() ")
    first, _, rest = words.partition(" ")
    factor = MULTIPLES.get(first.lower())
    unit = read_unit(rest if factor else words)
    if factor is None and unit is None and (not match["gap"] or len(words) < 2 or first in ("or", "and", *FUNCTIONS)):
        return None
    if not match["gap"] and len(words) < 2:  # 5m is 5 times m
        return None
    formula = _formula(match["number"])
    if formula is None:
        return None
    return Reading(scaled(formula, _number(factor)) if factor else formula, text, "", unit)


def _number(number: int | Fraction) -> Node:
    return Node("number", (), Fraction(number))


def same_answer(answer: Reading, gold: Reading, tolerance: Fraction) -> bool:
    """Whether two readings are of one answer; `tolerance` is relative to the gold number."""
    if answer.formula is None or gold.formula is None:
        return _as_text(answer.text) == _as_text(gold.text)
    if (answer.unit and gold.sign) or (gold.unit and answer.sign):
        return False
    formula, gold_formula = answer.formula, gold.formula
    try:
        if answer.unit and gold.unit and answer.unit != gold.unit:
            if answer.unit.dimensions != gold.unit.dimensions:
                return False
            formula = scaled(formula, _number(answer.unit.scale / gold.unit.scale))
        if equal(formula, gold_formula, tolerance) and not _conflict(answer.sign, gold.sign):
            return True
        if answer.sign and not gold.sign:
            return equal(_in_units_of_one(answer), gold_formula, tolerance)
        return bool(gold.sign and not answer.sign) and equal(formula, _in_units_of_one(gold), tolerance)
    except (Unreadable, RecursionError):
        return _as_text(answer.text) == _as_text(gold.text)


def _conflict(sign: str, gold_sign: str) -> bool:
    """Whether two signs speak of different things; `degree` may be a degree of any scale."""
    return bool(sign and gold_sign) and not (sign.startswith(gold_sign) or gold_sign.startswith(sign))


def _in_units_of_one(reading: Reading) -> Node:
    """50% as 0.5, and 180 degrees as π; degrees of temperature as they are."""
    assert reading.formula is not None
    factors = {"percent": _number(Fraction(1, 100)), "degree": _DEGREE_FACTOR}
    return scaled(reading.formula, factors.get(reading.sign, _number(1)))


def _as_text(text: str) -> str:
    """A text as it is compared: space between words and digits alone, words (not single letters) without case."""
    text = re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", text.strip())
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"[^\W\d_]{2,}", lambda match: match[0].casefold(), text)
