"""One notation for formulas: Unicode signs, LaTeX's synonyms and plain words become the same few LaTeX commands."""

from __future__ import annotations

import re
import unicodedata

SIGNS = {
    "−": "-", "–": "-", "‐": "-", "‑": "-", "﹣": "-", "×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/",
    "⁄": "/", "∕": "/", "√": "\\surd ", "π": "\\pi ", "∞": "\\infty ", "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ",
    "⩽": "\\le ", "⩾": "\\ge ", "∪": "\\cup ", "∈": "\\in ", "°": "^\\circ ", "±": "\\pm ", "∅": "\\emptyset ",
    "’": "'", "′": "'", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u200b": "", "¢": " cents", "º": "^\\circ ",
    "⟨": "(", "⟩": ")", "∨": " or ", "∧": " and ",
}  # fmt: skip
_SIGNS = str.maketrans(SIGNS)
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "₀₁₂₃₄₅₆₇₈₉₊₋"
_DIGITS = str.maketrans(_RAISED + _LOWERED, "0123456789+-" * 2)
_RUNS = ((re.compile(f"[{_RAISED}]+"), "^"), (re.compile(f"[{_LOWERED}]+"), "_"))

_SYNONYMS = {
    r"\\[dtc]frac(?![a-zA-Z])": r"\\frac",
    r"\\(?:leqslant|leq|le)(?![a-zA-Z])": r"\\le ",
    r"\\(?:geqslant|geq|ge)(?![a-zA-Z])": r"\\ge ",
    r"\\(?:neq|ne)(?![a-zA-Z])": r"\\ne ",
    r"\\lt(?![a-zA-Z])": "<",
    r"\\gt(?![a-zA-Z])": ">",
    r"\\(?:times|cdot|ast)(?![a-zA-Z])": "*",
    r"\\div(?![a-zA-Z])": "/",
    r"\\(?:lbrace)(?![a-zA-Z])": r"\\{",
    r"\\(?:rbrace)(?![a-zA-Z])": r"\\}",
    r"\\(?:[lr]?vert|mid)(?![a-zA-Z])": "|",
    r"\\langle(?![a-zA-Z])": "(",
    r"\\rangle(?![a-zA-Z])": ")",
    r"\\[lr]brack(?![a-zA-Z])": lambda match: "[" if match[0][1] == "l" else "]",
    r"\\varnothing(?![a-zA-Z])": r"\\emptyset ",
    r"\\(?:infin|infinity)(?![a-zA-Z])": r"\\infty ",
    r"\\degree(?![a-zA-Z])": r"^\\circ ",
    r"\^\{\s*\\circ\s*\}": r"^\\circ ",
    r"\\lor(?![a-zA-Z])": " or ",
    r"\\land(?![a-zA-Z])": " and ",
    r"\\operatorname\*?\{([a-zA-Z]+)\}": r"\\\1 ",
    r"\\(?:mathbf|mathit|boldsymbol|bm|vec|displaystyle|textstyle|mathsf)(?![a-zA-Z])": " ",
    # Spaces and sizes. A thin space between groups of digits is a thousands separator.
    r"(?<=\d)(?:\\[,!;: ]|\{,\}|,\\!)(?=\d{3}(?!\d))": ",",
    r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\.?|\\(?:limits|quad|qquad|thinspace|nobreak)(?![a-zA-Z])": " ",
    r"(?<!\\)\\[,;:! ]|~|(?<!\\)\\[()\[\]]": " ",
    r"(?<=\d)\s+[xX]\s+(?=\d)|(?<=\d)[xX](?=10\s*(?:\^|\*\*))": "*",
    r"(?<=\d)'(?=\d{3}(?!\d))": ",",
    r"(\d{1,20})\.(\d{0,20})\\overline\s*\{(\d{1,20})\}": lambda match: _repeating(*match.groups()),
    # An argument without braces is one digit or letter.
    r"\\frac\s*(\d)\s*(\d)": r"\\frac{\1}{\2}",
    r"\\frac\s*(\d)\s*\{": r"\\frac{\1}{",
    r"(\\frac\s*\{[^{}]*\})\s*(\w)": r"\1{\2}",
    r"\\sqrt\s*(\d|[a-zA-Z](?![a-zA-Z]))": r"\\sqrt{\1}",
}
_PATTERNS = tuple((re.compile(pattern), replacement) for pattern, replacement in _SYNONYMS.items())
TEXT = re.compile(r"\\(?:text|mathrm|textbf|textit|textrm|textnormal|mathbf|boldsymbol|bm|mbox|hbox|rm)\s*\{([^{}]*)\}")
"""A command that writes its argument as words."""


def one_notation(text: str) -> str:
    r"""A formula with Unicode signs and LaTeX synonyms in one spelling: `−½` → `-\frac{1}{2}`, `\dfrac12` likewise.

    Commands of text and units stay, since what they hold is read apart.
    """
    return latex_notation(plain_signs(text))


def plain_signs(text: str) -> str:
    """The text with digits of any script as 0–9, and mathematical signs as LaTeX commands or ASCII."""
    if text.isascii():
        return text
    for run, mark in _RUNS:
        text = run.sub(lambda match, mark=mark: f"{mark}{{{match[0].translate(_DIGITS)}}}", text)
    return "".join(map(_ascii, text)).translate(_SIGNS)


def latex_notation(text: str) -> str:
    """The text with one spelling per LaTeX command, and without commands of layout."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _repeating(whole: str, fixed: str, repeated: str) -> str:
    """A repeating decimal as a fraction: 0.1666… is (16 - 1)/90."""
    above = int(whole + fixed + repeated) - int(whole + fixed)
    return f"\\frac{{{above}}}{{{'9' * len(repeated)}{'0' * len(fixed)}}}"


def _ascii(sign: str) -> str:
    if sign.isascii():
        return sign
    if sign.isdecimal():
        return str(unicodedata.decimal(sign))
    if "！" <= sign <= "～":  # the full-width forms of ASCII
        return chr(ord(sign) - 0xFEE0)
    if "⁄" in (fraction := unicodedata.normalize("NFKC", sign)) and len(fraction) > 1:
        above, below = fraction.split("⁄")
        return f"\\frac{{{above}}}{{{below}}}"
    name = unicodedata.name(sign, "")
    if name.startswith("GREEK SMALL LETTER ") and name.count(" ") == 3:
        return f"\\{name.split()[-1].lower()} "
    return sign
