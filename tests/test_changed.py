"""Which parts the quick tests try."""

from pathlib import Path

from luthier import parts
from luthier.families import PACKAGE
from support.changed import is_tried

OBJECTIVES = parts.catalogue("objective")
COMMIT = "0" * 40


def tried(changed: set[Path], commit: str | None = COMMIT) -> set[str]:
    return {entry.name for entry in OBJECTIVES if is_tried(entry, frozenset(changed), commit)}


def test_a_part_that_changed_is_tried_whatever_the_commit():
    file = PACKAGE / "objectives" / "supervised" / "dft.py"
    assert all("dft" in tried({file}, f"{number:040x}") for number in range(12))


def test_what_a_family_shares_brings_all_of_its_parts():
    every = {entry.name for entry in OBJECTIVES}
    for name in ("base.py", "views.py", "sum.py", "_draws.py"):
        assert tried({PACKAGE / "objectives" / name}) == every
    assert tried({PACKAGE / "tuners" / "base.py"}) == tried(set()) != every


def test_every_part_has_its_turn_and_a_commit_tries_the_same():
    turns = [tried(set(), f"{number:040x}") for number in range(40)]
    assert set.union(*turns) == {entry.name for entry in OBJECTIVES}
    assert tried(set()) == tried(set()) and min(map(len, turns)) < len(OBJECTIVES) / 2


def test_without_a_checkout_all_are_tried():
    assert tried(set(), None) == {entry.name for entry in OBJECTIVES}
