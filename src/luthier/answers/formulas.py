r"""Formulas as trees: numbers, terms, equations, tuples, intervals, sets, in LaTeX or plain text.

The grammar reads what answers of exercises consist of. Whatever else a text holds makes it unreadable as a whole: a
formula is never read in part.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, NoReturn

from luthier.answers.notation import one_notation

LONGEST = 400
"""Characters of a formula; a longer text is no formula."""
DEEPEST = 40
"""Brackets within one another."""
FUNCTIONS = (
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln", "lg",
    "exp", "sqrt", "abs",
)  # fmt: skip
CONSTANTS = ("pi", "e", "i", "infty", "emptyset")
_WORDS = {"inf": "infty", "infinity": "infty", "oo": "infty", "asin": "arcsin", "acos": "arccos", "atan": "arctan"}
GREEK = (
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa",
    "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi", "omega", "Gamma",
    "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega", "ell",
)  # fmt: skip
RELATIONS = {"=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "\\le": "<=", "\\ge": ">=",
             "\\ne": "!=", "\\in": "in", "\\approx": "=", "\\to": "to"}  # fmt: skip
_TOKEN = re.compile(
    r"(?P<space>\s*)(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,4}(?!\d))?)|(?P<matrix>\\(?:begin|end)\s*\{[a-zA-Z]*matrix\})"
    r"|(?P<command>\\[A-Za-z]+|\\[{}]|\\\\)"
    r"|(?P<letters>[A-Za-z]+)|(?P<sign>\*\*|<=|>=|!=|==|[-+*/^_=<>()\[\]{}|,;:!&']))"
)
_GROUPING = re.compile(r"(?<![\d.,])([1-9]\d{0,2})((?:,\d{3})+)(?![\d,]*\d)")
_OPENING, _CLOSING = ("(", "[", "\\{"), (")", "]", "\\}")


class Unreadable(ValueError):
    """A text is no formula of this grammar."""


@dataclass(frozen=True)
class Node:
    """A formula.

    `kind` is number, symbol, constant, sum, product, quotient, power, negative, plus_minus, root, function, absolute,
    factorial, binomial, relation, sequence, set, list, union, ratio or matrix. `label` is the number, the name, the
    brackets or the relations; `parts` are the nodes below.
    """

    kind: str
    parts: tuple[Node, ...] = ()
    label: Any = None


@lru_cache(4096)
def parse_formula(text: str) -> Node:
    """The formula that a text is as a whole.

    Raises:
        Unreadable: it is none, or too long or too deep to be one.
    """
    if len(text) > LONGEST:
        raise Unreadable("too long")
    text = one_notation(text).strip()
    try:
        return _Parser(_ungrouped(text)).whole()
    except RecursionError:
        raise Unreadable("too deep") from None


def _ungrouped(text: str) -> str:
    """The text without thousands separators.

    A comma between digits separates thousands, as in 1,000, except where the text has commas between digits that
    cannot, and except in a bracket whose commas all stand between digits: (1,234) is a pair.
    """
    bare = _GROUPING.sub(lambda match: match[0].replace(",", ""), text)
    if re.search(r"\d,\d", bare):
        return text
    bracketed = re.search(r"(?:[(\[]|\\\{|\A\{)[^()\[\]]*\d,\d", text)
    return text if bracketed and "," not in bare and ";" not in bare else bare


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    spaced: bool


def _tokens(text: str) -> list[_Token]:
    tokens, end = [], 0
    while end < len(text):
        match = _TOKEN.match(text, end)
        if match is None:
            raise Unreadable(f"no sign of a formula: {text[end : end + 10]!r}")
        kind = match.lastgroup or ""
        name, spaced = match[kind], bool(match["space"])
        if kind == "letters":
            tokens += _names(name, spaced)
        elif kind == "command" and name[1:].isalpha():
            tokens.append(_command(name, spaced))
        elif kind == "matrix":
            tokens.append(_Token("matrix", name.replace(" ", ""), spaced))
        else:
            tokens.append(_Token("number" if kind == "number" else "sign", name, spaced))
        end = match.end()
    return tokens


def _names(letters: str, spaced: bool) -> list[_Token]:
    """Letters in a row: a function, a constant, `or`, or symbols that are multiplied."""
    letters = _WORDS.get(letters.lower(), letters)
    if letters in ("or", "and"):
        return [_Token("sign", letters, spaced)]
    if letters in FUNCTIONS:
        return [_Token("function", letters, spaced)]
    if letters in CONSTANTS:
        return [_Token("constant", letters, spaced)]
    if len(letters) > 3:
        raise Unreadable(f"a word: {letters!r}")
    return [
        _Token("constant" if letter in CONSTANTS else "symbol", letter, spaced and index == 0)
        for index, letter in enumerate(letters)
    ]


def _command(name: str, spaced: bool) -> _Token:
    word = name[1:]
    if word in FUNCTIONS and word != "sqrt":
        return _Token("function", word, spaced)
    if word in CONSTANTS:
        return _Token("constant", word, spaced)
    if word in GREEK:
        return _Token("symbol", word, spaced)
    if name in RELATIONS or word in ("frac", "sqrt", "surd", "binom", "pm", "mp", "cup", "circ"):
        return _Token("sign", name, spaced)
    raise Unreadable(f"an unknown command: {name}")


class _Parser:
    """A recursive descent over the tokens of one formula."""

    def __init__(self, text: str) -> None:
        self.tokens = _tokens(text)
        self.position = 0
        self.depth = 0

    def whole(self) -> Node:
        node = self.listing()
        if self.position < len(self.tokens):
            self.fail()
        return node

    def fail(self) -> NoReturn:
        raise Unreadable(f"unexpected token {self.position}")

    @property
    def next(self) -> str:
        return self.tokens[self.position].text if self.position < len(self.tokens) else ""

    @property
    def kind(self) -> str:
        return self.tokens[self.position].kind if self.position < len(self.tokens) else ""

    def take(self, *texts: str) -> str:
        """The next token's text if it is one of these, which is then read; else an empty string."""
        if self.kind == "sign" and self.next in texts:
            self.position += 1
            return texts[texts.index(self.tokens[self.position - 1].text)]
        return ""

    def need(self, text: str) -> None:
        if not self.take(text):
            self.fail()

    def listing(self) -> Node:
        """Terms behind one another: `1, 2` is a list without an order, `1:2` a ratio."""
        parts, marks = [self.union()], set()
        while separator := self.take(",", ";", ":", "or", "and"):
            marks.add(separator)
            if separator == "," and (word := self.take("or", "and")):  # `1, 2, and 3`
                marks.add(word)
            parts.append(self.union())
        if not marks:
            return parts[0]
        if ":" in marks:
            return Node("ratio", tuple(parts)) if len(marks) == 1 else self.fail()
        # Of inequalities `and` means both, and the others mean either.
        both = "and" in marks and any(part.kind == "relation" and part.label != ("=",) for part in parts)
        return Node("list", tuple(parts), "and" if both else None)

    def union(self) -> Node:
        parts = [self.relation()]
        while self.take("\\cup"):
            parts.append(self.relation())
        return parts[0] if len(parts) == 1 else Node("union", tuple(parts))

    def relation(self) -> Node:
        members, signs = [self.sum()], []
        while sign := self.take(*RELATIONS):
            signs.append(RELATIONS[sign])
            members.append(self.sum())
        return members[0] if not signs else Node("relation", tuple(members), tuple(signs))

    def sum(self) -> Node:
        node: Node | None = None
        while sign := self.take("+", "-", "\\pm", "\\mp") or ("" if node else "+"):
            term = self.product()
            if sign in ("\\pm", "\\mp"):
                term = Node("plus_minus", (term,), 1 if sign == "\\pm" else -1)
            elif sign == "-":
                term = Node("negative", (term,))
            node = term if node is None else Node("sum", (node, term))
        assert node is not None
        return node

    def product(self) -> Node:
        node = self.power()
        while True:
            if self.take("*"):
                node = Node("product", (node, self.signed()))
            elif self.take("/"):
                node = Node("quotient", (node, self.signed()))
            elif self._multiplies():
                node = Node("product", (node, self.power()))
            else:
                return node

    def _multiplies(self) -> bool:
        """Whether the next token begins a factor without a sign of multiplication; a number never does: `1 2`."""
        if self.kind in ("symbol", "constant", "function"):
            return True
        return self.kind == "sign" and self.next in ("(", "{", "\\frac", "\\sqrt", "\\surd", "\\binom")

    def signed(self) -> Node:
        return Node("negative", (self.signed(),)) if self.take("-") else self.power()

    def power(self) -> Node:
        node = self.primary()
        while self.take("!"):
            node = Node("factorial", (node,))
        if self.take("^", "**"):
            if self.take("\\circ"):
                return Node("product", (node, Node("constant", (), "degree")))
            node = Node("power", (node, self.exponent()))
            while self.take("!"):
                node = Node("factorial", (node,))
        return node

    def exponent(self) -> Node:
        if self.take("+"):
            return self.exponent()
        return Node("negative", (self.exponent(),)) if self.take("-") else self.power()

    def primary(self) -> Node:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable("too deep")
        node = self._primary()
        self.depth -= 1
        return node

    def _primary(self) -> Node:
        kind, text = self.kind, self.next
        if kind == "number":
            return self.number()
        if kind == "symbol":
            self.position += 1
            return self.symbol(text)
        if kind == "constant":
            self.position += 1
            return Node("constant", (), text)
        if kind == "function":
            self.position += 1
            return self.function(text)
        if kind == "matrix" and text.startswith("\\begin"):
            self.position += 1
            return self.matrix(text.replace("begin", "end"))
        readers: dict[str, Callable[[], Node]] = {
            "\\frac": lambda: Node("quotient", (self.argument(), self.argument())),
            "\\binom": lambda: Node("binomial", (self.argument(), self.argument())),
            "\\sqrt": self.root,
            "\\surd": lambda: Node("root", (self.radicand(), _number(2))),
            "|": self.absolute,
            "{": self.braces,
            **dict.fromkeys(_OPENING, self.brackets),
        }
        if kind != "sign" or text not in readers:
            self.fail()
        if text not in _OPENING:
            self.position += 1
        return readers[text]()

    def number(self) -> Node:
        """A number; an integer before a proper fraction is a mixed number."""
        token = self.tokens[self.position]
        self.position += 1
        if self.take("_"):  # digits of another base are a name: they equal themselves alone
            return Node("symbol", (), f"{token.text}_{self.subscript()}")
        node = _number(token.text)
        if not token.text.isdigit():
            return node
        start = self.position
        above = below = None
        if self.take("\\frac"):
            above, below = self.argument(), self.argument()
        elif self.kind == "number" and self.tokens[start].spaced and self.next.isdigit():
            above = _number(self.next)
            self.position += 1
            if self.take("/") and self.kind == "number" and self.next.isdigit():
                below = _number(self.next)
                self.position += 1
        proper = (
            above is not None
            and below is not None
            and above.kind == below.kind == "number"
            and above.label.denominator == below.label.denominator == 1
            and above.label < below.label
        )
        if not proper:
            self.position = start
            return node
        return Node("number", (), node.label + Fraction(above.label, below.label))  # type: ignore[union-attr]

    def symbol(self, name: str) -> Node:
        if self.take("_"):
            name = f"{name}_{self.subscript()}"
        while self.take("'"):
            name += "'"
        return Node("symbol", (), name)

    def subscript(self) -> str:
        if not self.take("{"):
            self.position += 1
            return self.tokens[self.position - 1].text if self.position <= len(self.tokens) else self.fail()
        start = self.position
        while self.next and not self.take("}"):
            self.position += 1
        return "".join(token.text for token in self.tokens[start : self.position - 1])

    def function(self, name: str) -> Node:
        base = None
        if name == "log" and self.take("_"):
            base = self.argument()
        power = self.exponent_of_function()
        if name == "exp":
            node = Node("power", (Node("constant", (), "e"), self.applied()))
        elif name == "sqrt":
            node = Node("root", (self.applied(), _number(2)))
        elif name == "abs":
            node = Node("absolute", (self.applied(),))
        else:
            node = Node("function", (self.applied(), *([base] if base else [])), name)
        return node if power is None else Node("power", (node, power))

    def exponent_of_function(self) -> Node | None:
        return self.exponent() if self.take("^") else None

    def applied(self) -> Node:
        r"""What a function is applied to: a bracket, or factors up to the next sign, as in \sin 2x."""
        if self.kind == "sign" and self.next in ("(", "{", "["):
            return self.primary()
        node = self.power()
        while self.kind in ("symbol", "constant") or (self.kind == "sign" and self.next == "\\frac"):
            node = Node("product", (node, self.power()))
        return node

    def argument(self) -> Node:
        """The argument of a command: braces, or one token."""
        if self.take("{"):
            return self.braces()
        return self.primary()

    def braces(self) -> Node:
        node = self.listing()
        self.need("}")
        return node

    def root(self) -> Node:
        degree = _number(2)
        if self.take("["):
            degree = self.sum()
            self.need("]")
        return Node("root", (self.argument(), degree))

    def radicand(self) -> Node:
        """What a plain root sign covers: √2x is √2 · x."""
        return self.primary()

    def absolute(self) -> Node:
        node = self.sum()
        self.need("|")
        return Node("absolute", (node,))

    def brackets(self) -> Node:
        """A term in brackets, a tuple, an interval or a set."""
        opening = self.take(*_OPENING)
        if opening == "\\{" and self.take("\\}"):
            return Node("constant", (), "emptyset")
        inner = self.listing()
        closing = self.take(*_CLOSING)
        parts = inner.parts if inner.kind == "list" else (inner,)
        if opening == "\\{":
            return Node("set", parts) if closing == "\\}" else self.fail()
        if closing not in (")", "]"):
            self.fail()
        if len(parts) == 1 and opening + closing in ("()", "[]"):
            return inner
        return Node("sequence", parts, opening + closing)

    def matrix(self, end: str) -> Node:
        r"""The rows behind \begin{pmatrix} and its like, up to `end`."""
        rows: list[Node] = []
        while self.next != end:
            row = [self.sum()]
            while self.take("&"):
                row.append(self.sum())
            rows.append(Node("sequence", tuple(row), "row"))
            if not self.take("\\\\") and self.next != end:
                self.fail()
        self.position += 1
        return Node("matrix", tuple(rows), "|" if "vmatrix" in end else "")


def _number(digits: str | int) -> Node:
    return Node("number", (), Fraction(digits))
