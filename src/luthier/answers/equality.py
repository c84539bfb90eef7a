"""Whether two formulas are equal: exactly where both are rational, else to 40 digits; formulas with symbols at points.

Two terms with symbols count as equal if they are equal at several points. Distinct terms of the size that is read agree
there with a probability that does not matter (Schwartz 1980, 10.1145/322217.322225).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

from luthier.answers.formulas import Node, Unreadable

DIGITS = 60
CLOSE = Fraction(1, 10**40)
"""Relative difference of two irrational numbers that are computed to DIGITS and count as equal."""
EXACT_BITS = 20_000
"""Bits of a rational number; a longer one is a float of DIGITS digits."""
LARGEST = 10**12
"""Bits of any number: a power tower like 9^9^9^9 is no number that can be compared."""
LARGEST_FACTORIAL = 1000
MOST_MEMBERS = 40
"""Members of a list that are matched in any order."""
POINTS = 4

Number = Any
"""A Fraction, or a number of mpmath."""


@cache
def _mp() -> Any:
    """A context of mpmath of our own: its precision is nobody else's."""
    import mpmath  # a tenth of a second, and most answers are rational

    context = mpmath.mp.clone()
    context.dps = DIGITS
    return context


def equal(answer: Node, gold: Node, tolerance: Fraction = Fraction(0)) -> bool:
    """Whether an answer is the same formula as the gold one; `tolerance` is relative to each gold number.

    Raises:
        Unreadable: a term has no value, as 1/0.
    """
    if _is_equation(answer) and _is_equation(gold) and (_symbols(answer) or _symbols(gold)):
        if _proportional(_difference(answer), _difference(gold)):
            return True
        names = {node.parts[0].label for node in (answer, gold) if node.parts[0].kind == "symbol"}
        if len(names) == 2 and not _symbols(answer.parts[1]):  # x = 5 is not y = 5; y = 2x is f(x) = 2x
            return False
    answer, gold = _plain(answer), _plain(gold)
    if _several(answer) or _several(gold):
        return _same_members(answer, gold, tolerance)
    if answer.kind != gold.kind and ("relation" in (answer.kind, gold.kind)):
        return False
    if gold.kind == "relation":
        return _same_relation(answer, gold, tolerance)
    if gold.kind in ("sequence", "ratio", "matrix") or answer.kind in ("sequence", "ratio", "matrix"):
        same_frame = (answer.kind, answer.label, len(answer.parts)) == (gold.kind, gold.label, len(gold.parts))
        return same_frame and all(
            equal(part, other, tolerance) for part, other in zip(answer.parts, gold.parts, strict=True)
        )
    return _same_term(answer, gold, tolerance)


def _is_equation(node: Node) -> bool:
    return node.kind == "relation" and node.label == ("=",)


def scaled(node: Node, factor: Node) -> Node:
    """The formula, or each member of its list, times a factor."""
    node = _plain(node)
    if node.kind in ("list", "sequence"):
        return Node(node.kind, tuple(scaled(part, factor) for part in node.parts), node.label)
    return Node("product", (factor, node))


def _plain(node: Node) -> Node:
    """The node in its simplest kind: `x = 5` is 5, a set of one member is the member, `x < 5` an interval."""
    if node.kind == "relation":
        node = _of_relation(node)
    if node.kind in ("set", "list", "union"):
        parts: list[Node] = []
        for part in _without_name(node.parts):
            part = _plain(part)
            members = part.parts if part.kind in ("list", "union") else [part]
            for member in members:
                # A set holds each member once; a list of solutions may hold one twice.
                if node.kind != "set" or not any(equal(member, other) for other in parts):
                    parts.append(member)
        return parts[0] if len(parts) == 1 else Node("list", tuple(parts), node.label)
    if _holds(node, "plus_minus") and node.kind not in ("sequence", "matrix", "ratio", "relation"):
        return Node("list", (_signed(node, 1), _signed(node, -1)))
    return node


def _several(node: Node) -> bool:
    return node.kind == "list"


def _of_relation(node: Node) -> Node:
    """The last side of `x = 5`, and of `2 + 3 = 5` even if that is false; an inequality's interval; else the node."""
    members, signs = node.parts, node.label
    if signs[0] in ("in", "to") and len(signs) == 1 and _is_name(members[0]):
        return members[1]
    if set(signs) == {"="}:
        if _is_name(members[0]) and _symbols(members[0])[0] not in _symbols(members[-1]):
            return members[-1]
        if len(members) == 2 and _is_name(members[1]) and not _symbols(members[0]):
            return members[0]
        return members[-1] if not _symbols(node) else node
    return _interval(members, signs) or node


def _is_name(node: Node) -> bool:
    """Whether a node is what an answer is called: x, or f(x)."""
    if node.kind == "product":
        return all(part.kind == "symbol" for part in node.parts) and node.parts[0].label in ("f", "g", "h", "P", "p")
    return node.kind == "symbol"


def _without_name(parts: Sequence[Node]) -> Sequence[Node]:
    """The members of `x = 1, x = 2` and of `x = 1, 2` without their name; members of several names keep them."""
    names = [part.parts[0] if part.kind == "relation" and part.label == ("=",) else None for part in parts]
    if names[0] is not None and _is_name(names[0]) and set(names[1:]) in ({None}, {names[0]}):
        return [part if name is None else part.parts[1] for part, name in zip(parts, names, strict=True)]
    if any(name is not None for name in names):
        return [
            part if name is None else Node("relation", part.parts, ("==",))
            for part, name in zip(parts, names, strict=True)
        ]
    return parts


def _interval(members: Sequence[Node], signs: Sequence[str]) -> Node | None:
    """The interval of x < 5, or of 1 < x <= 3; None for any other chain."""
    if set(signs) <= {">", ">="}:
        members, signs = members[::-1], [sign.replace(">", "<") for sign in signs[::-1]]
    if not set(signs) <= {"<", "<="}:
        return None
    infinity = Node("constant", (), "infty")
    if len(members) == 2:
        if _is_name(members[0]):
            members, signs = [Node("negative", (infinity,)), *members], ["<", *signs]
        else:
            members, signs = [*members, infinity], [*signs, "<"]
    if len(members) != 3 or not _is_name(members[1]) or _symbols(members[0]) or _symbols(members[2]):
        return None
    brackets = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
    return Node("sequence", (members[0], members[2]), brackets)


def _same_members(answer: Node, gold: Node, tolerance: Fraction) -> bool:
    """Whether two lists have equal members in any order."""
    if not (_several(answer) and _several(gold)) or answer.label != gold.label:
        return False
    if len(answer.parts) != len(gold.parts) or len(gold.parts) > MOST_MEMBERS:
        return False
    rest = list(gold.parts)
    for part in answer.parts:
        match = next((other for other in rest if equal(part, other, tolerance)), None)
        if match is None:
            return False
        rest.remove(match)
    return True


def _same_relation(answer: Node, gold: Node, tolerance: Fraction) -> bool:
    """Whether two equations have the same solutions up to a factor, or two chains of inequalities the same members."""
    if set(answer.label) | set(gold.label) <= {"=", "=="} and len(answer.parts) == len(gold.parts) == 2:
        return _proportional(_difference(answer), _difference(gold))
    members, signs = _ascending(answer)
    gold_members, gold_signs = _ascending(gold)
    if signs != gold_signs:
        return False
    return all(equal(part, other, tolerance) for part, other in zip(members, gold_members, strict=True))


def _ascending(node: Node) -> tuple[Sequence[Node], Sequence[str]]:
    if set(node.label) <= {">", ">="}:
        return node.parts[::-1], tuple(sign.replace(">", "<") for sign in node.label[::-1])
    return node.parts, node.label


def _difference(equation: Node) -> Node:
    return Node("sum", (equation.parts[0], Node("negative", (equation.parts[1],))))


def _proportional(answer: Node, gold: Node) -> bool:
    """Whether one term is the other times a constant other than 0."""
    ratio: Number | None = None
    names = tuple(sorted({*_symbols(answer), *_symbols(gold)}))
    for point in _points(names):
        numbers = evaluate(answer, point), evaluate(gold, point)
        if numbers[0] == 0 or numbers[1] == 0:
            return False
        quotient = numbers[0] / numbers[1] if _rational(*numbers) else _float(numbers[0]) / _float(numbers[1])
        if ratio is not None and not _close(quotient, ratio, Fraction(0)):
            return False
        ratio = quotient
    return True


def _same_term(answer: Node, gold: Node, tolerance: Fraction) -> bool:
    names = tuple(sorted({*_symbols(answer), *_symbols(gold)}))
    if _opaque(answer) != _opaque(gold):
        return False
    if _opaque(answer):
        return True
    for point in _points(names):
        if not _close(evaluate(answer, point), evaluate(gold, point), Fraction(0) if names else tolerance):
            return False
    return True


def _opaque(node: Node) -> bool:
    return node.kind == "constant" and node.label == "emptyset"


@lru_cache(256)
def _points(names: tuple[str, ...]) -> tuple[Mapping[str, Fraction], ...]:
    """Points at which terms are compared: rational, the first half positive, so that |x| is not x everywhere."""
    if not names:
        return ({},)
    draw = random.Random(0)
    points = []
    for number in range(POINTS):
        signs = [1 if number % 2 == 0 else draw.choice([-1, -1, 1]) for _ in names]
        if number == POINTS - 1:
            signs = [-1] * len(names)
        points.append(
            {name: sign * Fraction(draw.randint(1000, 4000), 1009) for name, sign in zip(names, signs, strict=True)}
        )
    return tuple(points)


def _symbols(node: Node) -> tuple[str, ...]:
    if node.kind == "symbol":
        return (node.label,)
    return tuple(name for part in node.parts for name in _symbols(part))


def _holds(node: Node, kind: str) -> bool:
    return node.kind == kind or any(_holds(part, kind) for part in node.parts)


def _signed(node: Node, sign: int) -> Node:
    """The node with one sign of each ±."""
    parts = tuple(_signed(part, sign) for part in node.parts)
    if node.kind != "plus_minus":
        return Node(node.kind, parts, node.label)
    return parts[0] if sign * node.label > 0 else Node("negative", parts)


def _close(number: Number, gold: Number, tolerance: Fraction) -> bool:
    if _rational(number, gold):
        return abs(number - gold) <= tolerance * abs(gold)
    context = _mp()
    number, gold = _float(number), _float(gold)
    if number == gold:
        return True
    allowed = _float(max(tolerance, CLOSE)) * abs(gold)
    return bool(context.isfinite(number) and context.isfinite(gold) and abs(number - gold) <= allowed)


def _rational(*numbers: Number) -> bool:
    return all(isinstance(number, Fraction) for number in numbers)


def _float(number: Number) -> Any:
    if isinstance(number, Fraction):
        return _mp().mpf(number.numerator) / number.denominator
    return number


def evaluate(node: Node, point: Mapping[str, Fraction] | None = None) -> Number:
    """The number that a term is, at a point where it has symbols.

    Raises:
        Unreadable: it has no value, or none of a size that can be compared.
    """
    try:
        return _evaluate(node, point or {})
    except (ArithmeticError, ValueError, TypeError, KeyError) as error:
        raise Unreadable(f"no value: {error}") from None


def _evaluate(node: Node, point: Mapping[str, Fraction]) -> Number:
    if node.kind == "number":
        return node.label
    if node.kind == "symbol":
        return point[node.label]
    if node.kind == "constant":
        return _constant(node.label)
    numbers = [_evaluate(part, point) for part in node.parts]
    if node.kind == "sum":
        return _sum(*numbers)
    if node.kind == "negative":
        return -numbers[0]
    if node.kind == "product":
        return _bounded(_exactly(numbers, lambda a, b: a * b))
    if node.kind == "quotient":
        return _bounded(_exactly(numbers, lambda a, b: a / b))
    if node.kind == "power":
        return _power(*numbers)
    if node.kind == "root":
        return _root(*numbers)
    if node.kind == "absolute":
        return abs(numbers[0])
    if node.kind == "factorial":
        return Fraction(math.factorial(_small(numbers[0])))
    if node.kind == "binomial":
        return Fraction(math.comb(_small(numbers[0]), _small(numbers[1])))
    if node.kind == "function":
        return _function(node.label, numbers)
    raise Unreadable(f"a {node.kind} within a term")


def _exactly(numbers: Sequence[Number], work: Any) -> Number:
    return work(*numbers) if _rational(*numbers) else work(*map(_float, numbers))


def _sum(left: Number, right: Number) -> Number:
    return _exactly((left, right), lambda a, b: a + b)


def _bounded(number: Number) -> Number:
    """A rational number of more than EXACT_BITS as a float."""
    if isinstance(number, Fraction) and _bits(number) > EXACT_BITS:
        return _float(number)
    return number


def _bits(number: Fraction) -> int:
    return number.numerator.bit_length() + number.denominator.bit_length()


def _constant(name: str) -> Number:
    context = _mp()
    constants = {"pi": context.pi, "e": context.e, "i": context.mpc(0, 1), "infty": context.inf}
    return +constants[name] if name != "degree" else context.pi / 180


def _power(base: Number, exponent: Number) -> Number:
    if _rational(base, exponent):
        if exponent.denominator == 1:
            if abs(exponent.numerator) * _bits(base) <= EXACT_BITS:
                return base**exponent.numerator
        elif exponent.denominator <= 64 and abs(exponent.numerator) * _bits(base) <= EXACT_BITS:
            return _root(base**exponent.numerator, Fraction(exponent.denominator))
    context = _mp()
    base, exponent = _float(base), _float(exponent)
    if base == 0:
        return Fraction(0) if context.re(exponent) > 0 else context.mpf(1) / 0
    if abs(exponent) * (abs(context.log(abs(base), 2)) + 1) > LARGEST:
        raise Unreadable("too large")
    return context.power(base, exponent)


def _root(number: Number, degree: Number) -> Number:
    if _rational(number, degree) and degree.denominator == 1 and 1 <= degree <= 64:
        order = degree.numerator
        above, below = _exact_root(abs(number.numerator), order), _exact_root(number.denominator, order)
        if above is not None and below is not None and (number >= 0 or order % 2 == 1):
            return Fraction(above, below) * (1 if number >= 0 else -1)
        if number < 0 and order % 2 == 1:  # the real root of a negative number, as people mean it
            return -_mp().root(_float(-number), order)
    return _power(_float(number), _float(Fraction(1)) / _float(degree))


def _exact_root(number: int, order: int) -> int | None:
    """The integer whose power `order` is this one; None if there is none."""
    if number < 2:
        return number
    low, high = 1, 1 << (number.bit_length() // order + 1)
    while low <= high:
        middle = (low + high) // 2
        power = middle**order
        if power == number:
            return middle
        low, high = (middle + 1, high) if power < number else (low, middle - 1)
    return None


def _small(number: Number) -> int:
    if not isinstance(number, Fraction) or number.denominator != 1 or not 0 <= number <= LARGEST_FACTORIAL:
        raise Unreadable("no small number")
    return number.numerator


def _function(name: str, numbers: Sequence[Number]) -> Number:
    context = _mp()
    argument = _float(numbers[0])
    if name in ("log", "ln", "lg"):
        if argument == 0:
            raise Unreadable("the logarithm of 0")
        if len(numbers) > 1:
            return context.log(argument) / context.log(_float(numbers[1]))
        return context.log10(argument) if name == "lg" else context.log(argument)
    if abs(argument) > 10**DIGITS or (name.endswith("h") and abs(argument) > 10**6):
        raise Unreadable("too large")  # its remainder by 2π would take more digits than are computed
    names = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}
    return getattr(context, names.get(name, name))(argument)
