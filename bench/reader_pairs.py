"""Made-up answers in many written forms, with what is right about each pair: for bench/readers.py and the tests.

Every answer has a key that says exactly what it is: a number c·√n·πᵏ, a tuple, an interval, a set or a line. Two
answers are equal if their keys are. Each written form of a value meets every form of the same value, of its negative,
and of values that are 2, 10 or 100 times as large.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Written:
    """An answer as it is written; `mark` is what its number counts: percent, dollars, centimetres or degrees."""

    text: str
    key: Key
    form: str
    mark: str = ""

    @property
    def percent(self) -> bool:
        return self.mark == "percent"


def number_key(coefficient: Fraction, radicand: int = 1, pi: int = 0) -> Key:
    return ("number", coefficient, radicand, pi) if coefficient else ("number", Fraction(0), 1, 0)


def right(answer: Written, gold: Written) -> bool:
    """Whether a person would call the answer right; a percent on one side only may be read both ways."""
    if answer.mark and gold.mark and answer.mark != gold.mark:
        return False
    if answer.key == gold.key:
        return True
    if answer.percent == gold.percent or answer.key[0] != "number" or gold.key[0] != "number":
        return False
    small, large = (answer, gold) if answer.percent else (gold, answer)
    return large.key == number_key(small.key[1] * 100, *small.key[2:])


def _decimal(number: Fraction) -> str | None:
    below = number.denominator
    for factor in (2, 5):
        while below % factor == 0:
            below //= factor
    if below != 1:
        return None
    text = f"{float(number):.6f}".rstrip("0").rstrip(".")
    return text if Fraction(text) == number else None


def rational_forms(number: Fraction) -> Iterator[tuple[str, str, str]]:
    """(form, text, mark) of a rational number."""
    above, below, sign = abs(number.numerator), number.denominator, "-" if number < 0 else ""
    yield "slash", f"{number.numerator}/{below}" if below > 1 else f"{number.numerator}", ""
    for command in ("frac", "dfrac", "tfrac"):
        yield command, f"{sign}\\{command}{{{above}}}{{{below}}}", ""
    yield "frac, sign within", f"\\frac{{{number.numerator}}}{{{below}}}", ""
    yield "frac, sign below", f"\\frac{{{above}}}{{{sign}{below}}}", ""
    yield "frac in brackets", f"\\left({sign}\\frac{{{above}}}{{{below}}}\\right)", ""
    yield "name", f"x = {sign}\\frac{{{above}}}{{{below}}}", ""
    yield "minus sign", f"−{above}/{below}" if sign else f"{above}/{below}", ""
    if above < 10 and below < 10:
        yield "frac without braces", f"{sign}\\frac{above}{below}", ""
    if above > below > 1:
        yield "mixed", f"{sign}{above // below} {above % below}/{below}", ""
        yield "mixed frac", f"{sign}{above // below}\\frac{{{above % below}}}{{{below}}}", ""
    if (decimal := _decimal(number)) is None:
        return
    bare = decimal.lstrip("-")
    yield "decimal", decimal, ""
    yield "decimal, minus sign", f"{'−' if sign else ''}{bare}", ""
    yield "full width", "".join(chr(ord(sign_) + 0xFEE0) for sign_ in decimal), ""
    yield "trailing zeros", f"{decimal}{'' if '.' in decimal else '.'}00", ""
    yield "no leading zero", f"{sign}{bare.removeprefix('0')}" if bare.startswith("0.") else decimal, ""
    yield "thousands", f"{sign}{int(bare.split('.')[0]):,}{bare[len(bare.split('.')[0]) :]}", ""
    yield (
        "latex thousands",
        f"{sign}{int(bare.split('.')[0]):,}".replace(",", "{,}") + bare[len(bare.split(".")[0]) :],
        "",
    )
    yield "currency", f"{sign}\\${bare}", "dollars"
    yield "unit", f"{decimal} \\text{{ cm}}", "centimetres"
    yield "words", f"{decimal} apples", ""
    yield "degrees", f"{decimal}^\\circ", "degrees"
    yield "power of ten", f"{_plain(number * 1000)} \\times 10^{{-3}}", ""
    yield "exponent", f"{_plain(number * 1000)}e-3", ""
    yield "brackets", f"({decimal})", ""
    yield "percent", f"{_plain(number * 100)}\\%", "percent"


def _plain(number: Fraction) -> str:
    return _decimal(number) or f"{number.numerator}/{number.denominator}"


def surd_forms(coefficient: Fraction, radicand: int, pi: int) -> Iterator[tuple[str, str]]:
    """(form, text) of c·√n·πᵏ with an irrational part."""
    above, below, sign = abs(coefficient.numerator), coefficient.denominator, "-" if coefficient < 0 else ""
    root, circle = f"\\sqrt{{{radicand}}}" if radicand > 1 else "", "\\pi" if pi else ""
    times = "" if above == 1 else str(above)
    yield "frac", f"{sign}\\frac{{{times}{root}{circle}}}{{{below}}}"
    yield "factor", f"{sign}\\frac{{{above}}}{{{below}}}{root}{circle}"
    yield "slash", f"{sign}{times}{root}{circle}/{below}"
    yield "sign within", f"\\frac{{{sign}{times}{root} {circle}}}{{{below}}}"
    if pi:
        yield "unicode", f"{sign}{times}{f'√{radicand}·' if radicand > 1 else ''}π/{below}"
    else:
        yield "under the root", f"{sign}\\frac{{\\sqrt{{{above**2 * radicand}}}}}{{{below}}}"
        yield "root below", f"{sign}\\frac{{{above * radicand}}}{{{below}\\sqrt{{{radicand}}}}}"
        yield "unicode", f"{sign}{times}√{radicand}/{below}"
        yield "plain", f"{sign}{above}*sqrt({radicand})/{below}"
        yield "power", f"{sign}\\frac{{{above}}}{{{below}}} \\cdot {radicand}^{{1/2}}"


def pair_forms(first: str, second: str) -> Iterator[tuple[str, str, Key]]:
    """(form, text, kind of the key) of two numbers in brackets."""
    for form, text in (
        ("plain", f"({first},{second})"),
        ("spaced", f"( {first} , {second} )"),
        ("left", f"\\left({first}, {second}\\right)"),
    ):
        yield form, text, ("pair",)
    yield "half open", f"[{first}, {second})", ("half open",)
    yield "half open", f"\\left[{first},{second}\\right)", ("half open",)
    yield "set", f"\\{{{first}, {second}\\}}", ("set",)
    yield "set turned", f"\\left\\{{{second}, {first}\\right\\}}", ("set",)
    yield "list", f"{first}, {second}", ("set",)
    yield "or", f"{second} \\text{{ or }} {first}", ("set",)
    yield "equations", f"x={first} \\text{{ or }} x={second}", ("set",)


def line_forms(slope: int, constant: int) -> Iterator[tuple[str, str]]:
    """(form, text) of slope · x + constant."""
    yield "usual", f"{slope}x{constant:+d}"
    yield "turned", f"{constant} {slope:+d}x"
    yield "called y", f"y = {slope}x {constant:+d}"
    yield "called f(x)", f"f(x)={slope} x{constant:+d}"
    yield (
        "product",
        f"{slope}\\left(x {'+' if constant * slope > 0 else '-'} \\frac{{{abs(constant)}}}{{{abs(slope)}}}\\right)",
    )


def groups(draw: random.Random) -> Iterator[list[list[Written]]]:
    """Groups of values that are easily taken for one another; each value in all its forms."""
    for numbers in ((3, 4), (1, 2), (5, 2), (7, 1), (1234, 1), (5, 1), (-1, 2), (-9, 4), (1, 3), (20, 3), (25, 2)):
        number = Fraction(*numbers)
        yield [_rational(number * factor) for factor in (1, -1, 2, 10, 100, Fraction(1, 100))]
    for coefficient, radicand, pi in ((1, 2, 0), (3, 5, 0), (-2, 3, 0), (2, 1, 1), (3, 2, 1)):
        scale = Fraction(coefficient, draw.choice([2, 3]))
        yield [_surd(scale * factor, radicand, pi) for factor in (1, -1, 2, 10)]
    for first, second in (("1", "2"), ("-1", "3"), ("0", "1/2"), ("-\\sqrt{2}", "\\pi")):
        yield [_pair(*ends) for ends in ((first, second), (second, first), (_negated(first), second))]
    for slope, constant in ((2, 1), (-3, 5), (4, -7)):
        yield [_line(*line) for line in ((slope, constant), (-slope, constant), (slope, -constant), (constant, slope))]


def _negated(text: str) -> str:
    return text.removeprefix("-") if text.startswith("-") else "0" if text == "0" else f"-{text}"


def _rational(number: Fraction) -> list[Written]:
    key = number_key(number)
    return [Written(text, key, form, mark) for form, text, mark in rational_forms(number)]


def _surd(coefficient: Fraction, radicand: int, pi: int) -> list[Written]:
    key = number_key(coefficient, radicand, pi)
    return [Written(text, key, f"surd: {form}") for form, text in surd_forms(coefficient, radicand, pi)]


def _pair(first: str, second: str) -> list[Written]:
    forms = []
    for form, text, (kind,) in pair_forms(first, second):
        ends = frozenset((first, second)) if kind == "set" else (first, second)
        forms.append(Written(text, (kind, ends), f"pair: {form}"))
    return forms


def _line(slope: int, constant: int) -> list[Written]:
    return [Written(text, ("line", slope, constant), f"line: {form}") for form, text in line_forms(slope, constant)]


WRAPPED: Sequence[Callable[[str], str]] = (
    lambda text: f"\\boxed{{{text}}}",
    lambda text: f"Thus $x$ is found, and so \\boxed{{{text}}}.",
    lambda text: f"First \\boxed{{17}}. But no: $\\boxed{{ {text} }}$",
    lambda text: f"#### {text}",
    lambda text: f"${text}$" if "$" not in text else text,
)
"""What stands around an answer: ways in which no word of it is lost."""


def pairs(seed: int = 0, most: int = 12_000) -> list[tuple[str, Written, Written, bool]]:
    """(text of an answer, the answer, the gold answer, whether it is right), in an order drawn by `seed`."""
    draw = random.Random(seed)
    drawn = []
    for group in groups(draw):
        written = [answer for value_ in group for answer in value_]
        for answer in written:
            for gold in written:
                drawn.append((draw.choice(WRAPPED)(answer.text), answer, gold, right(answer, gold)))
    draw.shuffle(drawn)
    return drawn[:most]
