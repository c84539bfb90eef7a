"""Format numbers for readers, and escape text for HTML, LaTeX and Markdown."""

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


def points(share: float | None) -> str:
    """A share in [0, 1] as points: 0.8412 is 84.1."""
    return NONE if share is None else f"{100 * share:.1f}"


def signed(change: float | None) -> str:
    """A difference of shares as signed points: -0.019 is −1.9."""
    if change is None:
        return NONE
    text = f"{100 * abs(change):.1f}"
    return text if text == "0.0" else f"{MINUS if change < 0 else '+'}{text}"


def percent(share: float | None) -> str:
    """A share in [0, 1] in whole per cent."""
    return NONE if share is None else f"{100 * share:.0f}%"


def interval(low: float, high: float, sign: bool = False) -> str:
    """Both ends in points; signed for a difference."""
    in_points = signed if sign else points
    return f"[{in_points(low)}, {in_points(high)}]"


def p_value(p: float) -> str:
    """A p-value with two useful digits."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def rate(learning_rate: float | None) -> str:
    """A learning rate: 2e-4."""
    if learning_rate is None:
        return NONE
    mantissa, exponent = f"{learning_rate:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def count(number: float | None) -> str:
    """A whole number with separators: 12,400."""
    return NONE if number is None else f"{number:,.0f}"


def gigabytes(size: float | None) -> str:
    """Bytes as GB (10^9)."""
    return NONE if size is None else f"{size / 1e9:.1f}" if size >= 1e9 else f"{size / 1e9:.2f}"


def minutes(seconds: float | None) -> str:
    """Seconds as minutes."""
    return NONE if seconds is None else f"{seconds / 60:.1f}" if seconds < 6000 else f"{seconds / 60:.0f}"


def duration(seconds: float) -> str:
    """A time to wait: 0:41, 12 min, 3 h 10 min."""
    rounded = round(seconds)
    if rounded < 600:
        return f"{rounded // 60}:{rounded % 60:02}"
    if rounded < 3600:
        return f"{round(rounded / 60)} min"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02} min"


def setting_text(setting: object) -> str:
    """A setting of a recipe in one short line."""
    if setting is None:
        return NONE
    if isinstance(setting, float):
        return rate(setting) if setting and abs(setting) < 1e-3 else f"{setting:g}"
    return str(setting)


def html_text(text: object) -> str:
    """Text escaped for HTML, also inside attributes: answers of models are in the page."""
    return html.escape(str(text), quote=True)


def html_name(text: object) -> str:
    """A long name or path for HTML, which may break after `+ _ . , / =` and nowhere else."""
    return re.sub(r"([+_.,/=])", r"\1<wbr>", html_text(text))


def latex_text(text: object) -> str:
    """Text escaped for LaTeX."""
    pieces = str(text).replace("\n", " ").split("--")  # which LaTeX would join to a dash
    return "-{}-".join("".join(_LATEX.get(sign, sign) for sign in piece) for piece in pieces)


def markdown_text(text: object) -> str:
    """Text escaped for a Markdown table or sentence."""
    return re.sub(r"([\\`*_\[\]<>#|~!])", r"\\\1", str(text).replace("\n", " "))
