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
    """A method's proof as it was committed: `mark` in a word or two, and the result, if there is one."""

    mark: str
    result: Mapping[str, Any] | None = None


def committed(method: str, folder: Path | None = None) -> Committed:
    """The mark of a method: `unproven`, `stale`, or what its committed result shows.

    Only hashes and one small JSON file are read, so that the catalogue answers at once.
    """
    path = (folder or FOLDER) / f"{method}.yaml"
    result_path = path.with_suffix(".json")
    if not path.is_file() or not result_path.is_file():
        return Committed("unproven")
    result = read_json(result_path)
    if result["hash"] != hash_of(path):
        return Committed("stale", result)
    return Committed(mark([claim["verdict"]["outcome"] for claim in result["claims"].values()]), result)


def mark(outcomes: Sequence[str]) -> str:
    """One word for all claims of a proof: a failed one decides, then an undecided one."""
    if "fails" in outcomes:
        return "claim failed"
    return "undecided" if "undecided" in outcomes else "proven"


def seen(claim: Mapping[str, Any]) -> str:
    """The numbers behind a judged claim: `difference 0.031 (0.012 to 0.050), claimed > 0.02`."""
    form = next(form for form in FORMS if form in claim)
    verdict = claim["verdict"]
    if verdict["mean"] is None:
        return verdict["why"]
    return f"{form} {verdict['mean']:.4g} ({verdict['low']:.4g} to {verdict['high']:.4g}), claimed {claim[form]}"


def hash_of(path: Path) -> str:
    """sha256 of a proof's text. A result holds it: after any edit of the proof the result is stale."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
