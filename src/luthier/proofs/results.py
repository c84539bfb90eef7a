"""Committed results of proofs, read without the grammar of claims, so that the catalogue answers at once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import parts
from luthier.run_folder import read_json

FOLDER = parts.PACKAGE / "proofs"
FORMS = ("value", "difference", "ratio")


@dataclass(frozen=True)
class Committed:
    """What is known of a method's proof without running it: `mark` in a word or two, and the result, if any."""

    mark: str
    result: Mapping[str, Any] | None = None


def committed(method: str, folder: Path | None = None) -> Committed:
    """The mark of a method: `unproven`, `stale`, or what its committed result shows.

    Only hashes and one small JSON file are read, so that the catalogue answers at once.
    """
    path = (folder or FOLDER) / f"{method}.yaml"
    result = path.with_suffix(".json")
    if not path.is_file() or not result.is_file():
        return Committed("unproven")
    found = read_json(result)
    if found["hash"] != hash_of(path):
        return Committed("stale", found)
    return Committed(mark([claim["verdict"]["outcome"] for claim in found["claims"].values()]), found)


def mark(outcomes: Sequence[str]) -> str:
    """One word for all claims of a proof: a failed one decides, then an undecided one."""
    if "fails" in outcomes:
        return "claim failed"
    return "undecided" if "undecided" in outcomes else "proven"


def seen(claim: Mapping[str, Any]) -> str:
    """What a judged claim of a result rests on: `difference 0.031 (0.012 to 0.050), claimed > 0.02`."""
    form = next(form for form in FORMS if form in claim)
    verdict = claim["verdict"]
    if verdict["mean"] is None:
        return verdict["why"]
    return f"{form} {verdict['mean']:.4g} ({verdict['low']:.4g} to {verdict['high']:.4g}), claimed {claim[form]}"


def hash_of(path: Path) -> str:
    """sha256 of a proof's text, by which its result knows it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
