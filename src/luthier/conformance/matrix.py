"""The conformance matrix of one part: all checks of its slot; on a tiny model where one trains.

`luthier check ./mine.py` runs it on a file of the user's; the tests run it on every part of the package. The checks of
a slot are the function `checks` of the file in this folder that is named like the slot. A family whose checks need
packages that import this one keeps them in a file `_checks.py` of its own folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from luthier import parts
from luthier.conformance.base import CheckOutcome, Failed
from luthier.errors import LuthierError, RunError
from luthier.families import PACKAGE, families
from luthier.models.quiet import quiet
from luthier.recipe.methods import slot_of_file
from luthier.recipe.settings import slots

FOLDER = Path(__file__).parent
OWN_FILE = "_checks.py"


def checked_slots() -> tuple[str, ...]:
    """The slots whose parts have checks, in the order of a recipe."""
    return tuple(slot for slot in slots() if _file_of(slot) is not None)


def checks_of(slot: str, part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of a part by name, in the order they are run.

    Raises:
        RunError: the slot has no file of checks.
    """
    path = _file_of(slot)
    if path is None:
        raise RunError(f"There are no checks for a {slot}; there are for {', '.join(checked_slots())}.")
    # By name, since what a check needs may lie above this package, as the parts themselves do.
    return parts.lazy(".".join(("luthier", *path.relative_to(PACKAGE).with_suffix("").parts))).checks(part)


def _file_of(slot: str) -> Path | None:
    folders = families()[slot].folders if slot in families() else ()
    candidates = [FOLDER / f"{slot}.py", *(PACKAGE / folder / OWN_FILE for folder in folders)]
    return next((path for path in candidates if path.is_file()), None)


def run_checks(slot: str, part: type[Any]) -> Iterator[CheckOutcome]:
    """Run every check; an error of the part itself is an outcome too."""
    for name, check in checks_of(slot, part):
        try:
            check()
        except Failed as failure:
            yield CheckOutcome(name, False, str(failure))
        except LuthierError as error:
            yield CheckOutcome(name, False, str(error))
        except Exception as error:
            yield CheckOutcome(name, False, parts.describe_error(error))
        else:
            yield CheckOutcome(name, True, "")


def check_part(path: Path, console: Console) -> None:
    """Run the matrix on a part file and print each outcome.

    Raises:
        RunError: something failed.
    """
    slot = slot_of_file(path)
    part = parts.load(slot, str(path))
    quiet()
    failed = 0
    for outcome in run_checks(slot, part):
        console.print(f"  {'[green]pass[/]' if outcome.passed else '[red]FAIL[/]'}  {outcome.check}")
        if not outcome.passed:
            failed += 1
            console.print(f"        {outcome.message}", style="red", markup=False, highlight=False)
    if failed:
        raise RunError(f"{part.__name__} fails {failed} check(s) of the matrix.")
    console.print(f"{part.__name__} passes the matrix.")
