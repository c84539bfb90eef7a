"""`python -m luthier.conformance.support_page > docs/support.md`: which parts work together, as the matrix shows."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from luthier import parts
from luthier.conformance.base import CheckOutcome
from luthier.conformance.matrix import checked_slots, run_checks
from luthier.conformance.pairs import PAIRED, Combination, Trial, catalogued, trials

HEAD = """# What works with what

Every pair below was trained for three updates on a tiny model, or was refused before the first update, with the reason
beneath the table. Each part has the first of its `SETTINGS`; an objective for encoders or denoisers brings a
tiny model of that kind. Written by `make support`; a test fails when the parts have changed since.
"""

CHECKED = """## What each part passes

`luthier check ./mine.py` runs the same checks on a part of your own; [design.md](design.md) explains their purpose.
"""


def fingerprint() -> str:
    """A hash of the catalogue's entries for all parts that have checks: slots, names, options, constants."""
    described = []
    for slot in checked_slots():
        for entry in parts.catalogue(slot):
            described.append([slot, entry.name, entry.options, sorted(entry.constants.items())])
    return hashlib.sha256(json.dumps(described, default=repr).encode()).hexdigest()[:16]


def page(trials: Mapping[Combination, Trial], outcomes: Mapping[str, Mapping[str, Sequence[CheckOutcome]]]) -> str:
    """The page in Markdown.

    Args:
        trials: the outcome of training every pair.
        outcomes: slot → part → outcomes of its checks.
    """
    stamp = f"Catalogue: `{fingerprint()}`\n"
    checked: list[str] = []
    for slot, by_part in outcomes.items():
        checked += check_table(slot, by_part)
    return "\n".join([HEAD, stamp, *pair_tables(trials), CHECKED, *checked])


def pair_tables(trials: Mapping[Combination, Trial]) -> Iterator[str]:
    """A section for each two slots: yes, or a number that leads to the reason."""
    names = catalogued()
    for slot, other in combinations(PAIRED, 2):
        reasons: dict[str, int] = {}
        rows = []
        for first in names[slot]:
            of_first = [trials[(slot, first), (other, second)] for second in names[other]]
            rows.append([first, *(_cell(trial, reasons) for trial in of_first)])
        yield f"## {slot.capitalize()}s and {other}s\n"
        yield _table([slot, *names[other]], rows)
        yield "".join(f"{number}. {reason}\n" for reason, number in reasons.items())


def _cell(trial: Trial, reasons: dict[str, int]) -> str:
    if trial.verdict == "yes":
        return "yes"
    return f"{trial.verdict} ({reasons.setdefault(trial.message, len(reasons) + 1)})"


def check_table(slot: str, by_part: Mapping[str, Sequence[CheckOutcome]]) -> Iterator[str]:
    """Parts by checks; the cell of a check that a part does not have is empty."""
    checks = list(dict.fromkeys(outcome.check for outcomes in by_part.values() for outcome in outcomes))
    rows = []
    for name, outcomes in by_part.items():
        passed = {outcome.check: "yes" if outcome.passed else "**no**" for outcome in outcomes}
        rows.append([name, *(passed.get(check, "") for check in checks)])
    yield f"### {slot.capitalize()}s\n"
    yield _table([slot, *checks], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Run the matrix on all parts and print the page; progress goes to standard error."""
    names = catalogued()
    print("pairs", file=sys.stderr)
    of_pairs = trials(names)
    outcomes: dict[str, dict[str, list[CheckOutcome]]] = {slot: {} for slot in checked_slots()}
    for slot, by_part in outcomes.items():
        for entry in parts.catalogue(slot):
            print(f"{slot} {entry.name}", file=sys.stderr)
            by_part[entry.name] = list(run_checks(slot, parts.load(slot, entry.name)))
    print(page(of_pairs, outcomes), end="")


if __name__ == "__main__":
    main()
