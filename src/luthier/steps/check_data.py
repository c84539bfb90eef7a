"""The check of a recipe's data: what cannot be used, and the columns that the files probably mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.data.render import Renderer
from luthier.data.report import DataReport
from luthier.data.shapes import make_record
from luthier.errors import DataError, LuthierError, RecipeError
from luthier.recipe import Recipe
from luthier.recipe.edit import with_columns
from luthier.recipe.load import BUNDLED, find_recipe
from luthier.records.guess import Guess, classes_beside
from luthier.run_folder import write_text

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class GuessedColumns:
    """The columns that a source of unknown shape probably means.

    Attributes:
        path: of the source in the recipe, such as ("data", "train").
        guess: the mapping, or the columns with an example of each where nothing tells.
        previews: the rows of a record that is read so, token by token, with True on targets.
        fault: why that record cannot be read so; empty if it can.
        written: whether the recipe has these columns already.
    """

    path: tuple[str, ...]
    guess: Guess
    previews: Sequence[Sequence[tuple[str, bool]]]
    fault: str
    written: bool

    @property
    def offered(self) -> bool:
        """Whether there is a mapping, and a record that it reads."""
        return bool(self.guess.columns) and not self.fault and not self.written

    @property
    def line(self) -> str:
        """What the recipe has to say."""
        return f"{'.'.join(self.path)}.columns: {self.guess.text}"


def guessed_columns(recipe: Recipe, report: DataReport, renderer: Renderer) -> Iterator[GuessedColumns]:
    """The guess for each source with records of unknown shape, tried on one of them."""
    for source, guess in report.guesses:
        path = next((("data", name) for name in SPLITS if getattr(recipe.settings.data, name) == source), ())
        previews, fault = [], ""
        if guess.columns:
            try:
                record = replace(make_record(guess.example, guess.columns, "the example"), id="example")
                previews = [renderer.preview(row) for row in renderer.explain(record).rows]
            except LuthierError as error:
                fault = str(error)
        yield GuessedColumns(path, guess, previews, fault, source.get("columns") == guess.columns)


def refuse_unusable(recipe: Recipe, report: DataReport, guesses: Sequence[GuessedColumns]) -> None:
    """Raise the DataError of records that cannot be used, or of data that leave nothing to learn."""
    sources = report.problems.get("source", [])
    if report.unusable:
        lines = sum(len(problems) for kind, problems in report.problems.items() if kind not in ("source", "unrendered"))
        total = report.read + lines
        raise DataError(
            f"{report.unusable:,} of {total:,} records cannot be used; they are listed above.",
            _cure(report, guesses),
        )
    if sources:
        raise DataError(f"{len(sources)} of the recipe's sources cannot be read: {sources[0].message}", sources[0].hint)
    message, hint = report.fault
    if message:
        raise DataError(message, hint)
    if recipe.settings.data.too_long == "error" and report.dropped:
        raise DataError(
            f"{sum(report.dropped.values())} records have more than data.max_tokens {report.max_tokens} tokens.",
            "Raise `data.max_tokens`, or choose `data.too_long: drop` or `truncate`.",
        )


def _cure(report: DataReport, guesses: Sequence[GuessedColumns]) -> str:
    """What to do about records that cannot be used: the hint that all of them share, if they do."""
    problems = [problem for kind, some in report.problems.items() if kind != "source" for problem in some]
    hints = {problem.hint for problem in problems}
    if any(guess.offered for guess in guesses):
        return "Write the columns that are shown above into the recipe; `luthier check RECIPE --yes` does it."
    if any(not finding.guess.columns for finding in guesses):
        return "Name the columns in the recipe: `columns: {prompt: ..., completion: ...}`."
    return (hints.pop() if len(hints) == 1 else None) or "Correct or remove them."


def with_unlearned(report: DataReport, records: Sequence[Any]) -> DataReport:
    """The report with a note on a column of answers beside plain text, which is not learned; said once."""
    texts = [record for record in records[:200] if record.shape == "text"]
    name = classes_beside([record.fields for record in texts]) if texts else None
    if name is None:
        return report
    note = (
        f"The column `text` is learned as it is, and `{name}` is not; to learn `{name}` from the text, write "
        f"`columns: {{prompt: text, completion: {name}}}`"
    )
    counted = {key: unread | {"text": unread["text"] and key != name} for key, unread in report.unread.items()}
    return report.known(sources=[*report.sources, note], unread=counted)


def write_columns(recipe: str, findings: Sequence[GuessedColumns], overrides: Sequence[str] = ()) -> list[str]:
    """Write guessed columns into the file of a recipe, which keeps its comments; the lines that were written.

    Args:
        overrides: of the command line; a source that they name is not the file's.

    Raises:
        RecipeError: the recipe is no file of the user's, or has no source there that could be changed.
    """
    file = find_recipe(recipe)
    with file.open(encoding="utf-8", newline="") as stream:
        text = stream.read()
    for finding in findings:
        named = any(override.startswith((".".join(finding.path), "data=")) for override in overrides)
        changed = with_columns(text, finding.path, finding.guess.text) if _is_own(file) and not named else None
        if changed is None:
            raise RecipeError(
                f"{file} has no `{'.'.join(finding.path)}` that `--yes` could change.",
                f"Write it yourself: `{finding.line}`, also on the command line.",
            )
        text = changed
    write_text(file, text)
    return [finding.line for finding in findings]


def _is_own(file: Path) -> bool:
    return file.parent != BUNDLED and file.suffix in (".yaml", ".yml")
