"""A proof as it is written: one YAML file with recipe and claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.errors import RecipeError, nearest
from luthier.proofs import results
from luthier.proofs.claims import Claim
from luthier.recipe import yaml

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


def read_proof(name: str) -> Proof:
    """The proof of a method of the package, or one in a user's file (`mine.yaml`).

    Raises:
        RecipeError: there is none, or a key or claim is wrong; names the file and the claim.
    """
    path = Path(name) if name.endswith(".yaml") else results.FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in results.FOLDER.glob("*.yaml"))
        close = nearest(name, known)
        hint = f"Did you mean `{close}`?" if close else f"There are proofs of {', '.join(known) or 'none'}."
        raise RecipeError(f"There is no proof of `{name}`.", f"{hint} docs/proofs.md tells how to write one.")
    written = yaml.parse(path.read_text(encoding="utf-8"), path.name).data
    for key in KEYS:
        if not isinstance(written, dict) or not written.get(key):
            raise RecipeError(f"{path.name}: `{key}` is missing.", f"A proof has {', '.join(KEYS)}.")
    if unknown := sorted(set(written) - set(KEYS)):
        raise RecipeError(f"{path.name}: a proof has no key `{unknown[0]}`.", f"A proof has {', '.join(KEYS)}.")
    for key in ("recipe", "claims"):
        if not isinstance(written[key], dict):
            raise RecipeError(f"{path.name}: `{key}` must be a block.")
    claims = {key: _claim(path.name, key, spec) for key, spec in written["claims"].items()}
    return Proof(path.stem, str(written["about"]), written["recipe"], claims, path, results.hash_of(path))


def _claim(file: str, name: str, spec: Any) -> Claim:
    if not isinstance(spec, dict):
        raise RecipeError(f"{file}: the claim `{name}` must be a block.")
    try:
        return Claim(**spec)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["claims", name, *(str(piece) for piece in first["loc"])])
        raise RecipeError(f"{file}: {key}: {first['msg'].removeprefix('Value error, ')}.") from None
