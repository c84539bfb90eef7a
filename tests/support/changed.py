"""Which parts the quick tests try: those that changed, and a share of the others that is another one at each commit."""

import hashlib
import subprocess
from functools import cache
from pathlib import Path

from luthier.families import PACKAGE, SHARED_FILES, families
from luthier.parts import Entry

ROOT = Path(__file__).resolve().parents[2]
SLICES = 3
"""One of so many parts that did not change is tried: three commits in a row try nearly three quarters of them."""


def git(*arguments: str) -> str | None:
    """What git prints, or None where this is no checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


@cache
def changed_files() -> frozenset[Path]:
    """Files that differ from where this branch left `main`, committed or not; none on `main` itself."""
    base = git("merge-base", "HEAD", "origin/main") or git("merge-base", "HEAD", "main")
    listed = (
        ""
        if base is None
        else f"{git('diff', '--name-only', base)}\n{git('ls-files', '--others', '--exclude-standard')}"
    )
    return frozenset(ROOT / line for line in listed.splitlines() if line)


def is_tried(entry: Entry, changed: frozenset[Path], commit: str | None) -> bool:
    """Whether a quick run tries a part: it or what its family shares changed, or its turn has come at this commit.

    Without a commit (no checkout) every part is tried.
    """
    if commit is None or entry.path in changed:
        return True
    folders = [PACKAGE / folder for folder in families()[entry.slot].folders]
    shared = (path for path in changed if path.stem in SHARED_FILES or path.name.startswith("_"))
    if any(folder in path.parents for path in shared for folder in folders):
        return True
    return has_turn(f"{entry.slot}/{entry.name}", commit)


def has_turn(name: str, commit: str) -> bool:
    """Whether the turn of something by this name has come at a commit."""
    return hashlib.sha256(f"{commit}/{name}".encode()).digest()[0] % SLICES == 0


def tried_now(entry: Entry) -> bool:
    """Whether this run, at this commit and with these changes, tries a part."""
    return is_tried(entry, changed_files(), git("rev-parse", "HEAD"))
