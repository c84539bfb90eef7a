"""The files of a proof: its YAML, with recipe and claims, and beside it the committed result."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier import parts
from luthier.errors import RecipeError, nearest
from luthier.proofs.claims import FORMS, Claim
from luthier.recipe import yaml
from luthier.records import read_json

FOLDER = parts.PACKAGE / "proofs"
KEYS = ("about", "recipe", "claims")


@dataclass(frozen=True)
class Proof:
    """A method's proof as it was written before it ran. `hash` is of the file's text."""

    method: str
    about: str
    recipe: Mapping[str, Any]
    claims: Mapping[str, Claim]
    path: Path
    hash: str

    @property
    def result(self) -> Path:
        """Where the committed result lies."""
        return self.path.with_suffix(".json")


@dataclass(frozen=True)
class Committed:
    """What is known of a method's proof without running it: `mark` in a word or two, and the result, if any."""

    mark: str
    result: Mapping[str, Any] | None = None


def read_proof(name: str) -> Proof:
    """The proof of a method of the package, or one in a file of one's own (`mine.yaml`).

    Raises:
        RecipeError: there is none, or a key or claim is wrong; names the file and the claim.
    """
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = sorted(found.stem for found in FOLDER.glob("*.yaml"))
        close = nearest(name, known)
        hint = f"Did you mean `{close}`?" if close else f"There are proofs of {', '.join(known) or 'none'}."
        raise RecipeError(f"There is no proof of `{name}`.", f"{hint} docs/proofs.md tells how to write one.")
    data = yaml.parse(path.read_text(encoding="utf-8"), path.name).data
    for key in KEYS:
        if not isinstance(data, dict) or not data.get(key):
            raise RecipeError(f"{path.name}: `{key}` is missing.", f"A proof has {', '.join(KEYS)}.")
    if unknown := sorted(set(data) - set(KEYS)):
        raise RecipeError(f"{path.name}: a proof has no key `{unknown[0]}`.", f"A proof has {', '.join(KEYS)}.")
    for key in ("recipe", "claims"):
        if not isinstance(data[key], dict):
            raise RecipeError(f"{path.name}: `{key}` must be a block.")
    claims = {key: _claim(path.name, key, spec) for key, spec in data["claims"].items()}
    return Proof(path.stem, str(data["about"]), data["recipe"], claims, path, _hash(path))


def _claim(file: str, name: str, spec: Any) -> Claim:
    if not isinstance(spec, dict):
        raise RecipeError(f"{file}: the claim `{name}` must be a block.")
    try:
        return Claim(**spec)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["claims", name, *(str(piece) for piece in first["loc"])])
        raise RecipeError(f"{file}: {place}: {first['msg'].removeprefix('Value error, ')}.") from None


def committed(method: str, folder: Path | None = None) -> Committed:
    """The mark of a method: `unproven`, `stale`, or what its committed result shows.

    Only hashes and one small JSON file are read, so that the catalogue answers at once.
    """
    path = (folder or FOLDER) / f"{method}.yaml"
    result = path.with_suffix(".json")
    if not path.is_file() or not result.is_file():
        return Committed("unproven")
    found = read_json(result)
    if found["hash"] != _hash(path):
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


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
