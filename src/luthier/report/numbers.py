"""Numbers as people read them, and text made safe for the page it goes to."""

from __future__ import annotations

import html
import re

NONE = "–"
MINUS = "\N{MINUS SIGN}"
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    NONE: "--",
    MINUS: "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
}


def points(value: float | None) -> str:
    """A share in [0, 1] as points: 0.8412 is 84.1."""
    return NONE if value is None else f"{100 * value:.1f}"


def signed(value: float | None) -> str:
    """A difference of shares as signed points: -0.019 is −1.9."""
    if value is None:
        return NONE
    text = f"{100 * abs(value):.1f}"
    return text if text == "0.0" else f"{MINUS if value < 0 else '+'}{text}"


def percent(value: float | None) -> str:
    """A share in whole per cent."""
    return NONE if value is None else f"{100 * value:.0f}%"


def interval(low: float, high: float, sign: bool = False) -> str:
    """Both ends in points; signed for a difference."""
    show = signed if sign else points
    return f"[{show(low)}, {show(high)}]"


def p_value(p: float) -> str:
    """A p-value with two useful digits."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def rate(value: float | None) -> str:
    """A learning rate: 2e-4."""
    if value is None:
        return NONE
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def count(value: float | None) -> str:
    """A whole number with separators."""
    return NONE if value is None else f"{value:,.0f}"


def gigabytes(value: float | None) -> str:
    """Bytes as GB (10^9)."""
    return NONE if value is None else f"{value / 1e9:.1f}" if value >= 1e9 else f"{value / 1e9:.2f}"


def minutes(value: float | None) -> str:
    """Seconds as minutes."""
    return NONE if value is None else f"{value / 60:.1f}" if value < 6000 else f"{value / 60:.0f}"


def duration(seconds: float) -> str:
    """A time to wait: 0:41, 12 min, 3 h 10 min."""
    whole = round(seconds)
    if whole < 600:
        return f"{whole // 60}:{whole % 60:02}"
    if whole < 3600:
        return f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def plain(value: object) -> str:
    """A setting's value in one short line."""
    if value is None:
        return NONE
    if isinstance(value, float):
        return rate(value) if value and abs(value) < 1e-3 else f"{value:g}"
    return str(value)


def html_text(text: object) -> str:
    """Text for HTML, also inside attributes."""
    return html.escape(str(text), quote=True)


def html_name(text: object) -> str:
    """A long name or path for HTML, which may break after its joints and nowhere else."""
    return re.sub(r"([+_.,/=])", r"\1<wbr>", html_text(text))


def latex_text(text: object) -> str:
    """Text for LaTeX."""
    pieces = str(text).replace("\n", " ").split("--")  # which LaTeX would join to a dash
    return "-{}-".join("".join(_LATEX.get(sign, sign) for sign in piece) for piece in pieces)


def markdown_text(text: object) -> str:
    """Text for a Markdown table or sentence; nothing in it is markup any more."""
    return re.sub(r"([\\`*_\[\]<>#|~!])", r"\\\1", str(text).replace("\n", " "))
