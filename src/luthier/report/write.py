"""Write the reports of a comparison from its results.json alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from luthier.errors import RunError, nearest
from luthier.report.html import to_html
from luthier.report.sentences import Results
from luthier.report.text_formats import to_csv, to_latex, to_markdown, to_setup
from luthier.run_folder import read_json, write_text

FILES: dict[str, dict[str, Callable[[Results], str]]] = {
    "html": {"report.html": to_html},
    "markdown": {"report.md": to_markdown},
    "csv": {"results.csv": to_csv},
    "latex": {"table.tex": to_latex, "setup.md": to_setup},
}


def write_report(folder: Path, format: str = "html") -> Path:
    """Write a comparison's report beside its results.json.

    Args:
        folder: the comparison's.
        format: html, markdown, csv, latex (with setup.md) or json (results.json itself).

    Returns:
        The (first) file.

    Raises:
        RunError: no such format, or a folder without results.
    """
    source = folder / "results.json"
    if format != "json" and format not in FILES:
        known = (*FILES, "json")
        close = nearest(format, known)
        hint = f"Did you mean `{close}`?" if close else f"Formats: {', '.join(known)}."
        raise RunError(f"There is no report format `{format}`.", hint)
    if not source.is_file():
        raise RunError(f"{folder} has no results.json.", "Give the folder of a finished `luthier compare`.")
    results = read_json(source)
    if format == "json":
        return source
    for name, make in FILES[format].items():
        write_text(folder / name, make(results))
    return folder / next(iter(FILES[format]))
