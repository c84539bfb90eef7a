"""The checks of verbs: their keys, and one step of them in a pipeline on the packaged tiny language model.

`luthier.conformance.matrix` reads this file. It lies here and not in `conformance/`, which must not import `steps`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from luthier.conformance.base import Failed
from luthier.families import PACKAGE
from luthier.recipe.load import load_recipe
from luthier.recipe.steps import DATA, StepReference, build_verb, keys_of, names_in
from luthier.steps.run import run_recipe
from luthier.steps.verbs.base import Verb

TRIED = "tried"
"""Name of the step that is checked."""
UNKNOWN = "no_such_key"
MODELS, RECORDS = ("one", "other"), ("data", "answers")
"""Names of models and records that exist before the checked step."""
MEASURED = ("seconds", "memory", "per_second")
"""Words in the names of facts that differ from run to run."""


def keys_tried(part: type[Verb]) -> dict[str, Any]:
    """The keys of the checked step: the first of SETTINGS, with a name for every required reference.

    Raises:
        Failed: SETTINGS lacks a key that has no default.
    """
    keys = dict(part.SETTINGS[0])
    for key, field in keys_of(part).items():
        if key in keys or not field.is_required():
            continue
        names = _names_for(field)
        if names is not None:
            keys[key] = list(names) if get_origin(field.annotation) is list else names[0]
        elif key == "steps":
            keys[key] = {"inner": {"do": "train"}}
        else:
            raise Failed(f"the key `{key}` has no default: write SETTINGS = ({{{key!r}: ...}},)")
    return keys


def _names_for(field: FieldInfo) -> tuple[str, ...] | None:
    """Names of earlier steps that a key may hold; None if the key is no reference."""
    if StepReference("model") in field.metadata:
        return MODELS
    return RECORDS if StepReference("records") in field.metadata else None


def check_described(part: type[Verb]) -> None:
    """Every key has a description, which `luthier methods` and the reference print."""
    for key, field in keys_of(part).items():
        if not (field.description or "").strip():
            raise Failed(f"the key `{key}` has no description: write `Annotated[..., Field(description=...)]`")


def check_unknown_key(part: type[Verb]) -> None:
    """A key that the verb does not have is refused. Otherwise a misspelt key would do nothing, in silence."""
    keys = keys_tried(part)
    try:
        build_verb(_name_of(part), {**keys, UNKNOWN: 1}, None)
    except ValidationError:
        return
    raise Failed(f"a step with the key `{UNKNOWN}` is accepted: keep `extra` of `model_config` at forbid")


def check_repeats(part: type[Verb]) -> None:
    """The pipeline ends the same in another folder, and again in its own folder, as a run after a stop."""
    with TemporaryDirectory() as first, TemporaryDirectory() as second:
        expected = _outcome_of(part, Path(first))
        if _outcome_of(part, Path(second)) != expected:
            raise Failed("two runs with one seed differ: is there a random call that the seed does not decide?")
        # Without run.json the run counts as stopped: every step is called again and finds what it wrote.
        (Path(first) / "run.json").unlink()
        if _outcome_of(part, Path(first)) != expected:
            raise Failed("a run that goes on in its folder ends otherwise: does `run` read back what it wrote there?")


def _outcome_of(part: type[Verb], folder: Path) -> tuple[str, str]:
    """The facts of all steps, and a hash of the weights that a training behind the checked step ends with."""
    record = run_recipe(load_recipe(_pipeline(part), base=folder), folder, [])
    weights = hashlib.sha256()
    for path in sorted((folder / "model").glob("*.safetensors")):
        weights.update(path.read_bytes())
    return repr(_unmeasured(record["steps"])), weights.hexdigest()


def _pipeline(part: type[Verb]) -> dict[str, Any]:
    """Two models and answers of one of them, the checked step, and a training on what that step left."""
    tried = {"do": _name_of(part), **keys_tried(part)}
    verb = build_verb(_name_of(part), tried, None)
    named = {name for _, name in (*names_in(verb, "model"), *names_in(verb, "records"))}
    before = {
        MODELS[0]: {"do": "train"},
        MODELS[1]: {"do": "train", "from": "base", "train": {"objective": "dft"}},
        RECORDS[1]: {"do": "generate", "from": MODELS[0]},
    }
    return {
        "model": "nano",
        "data": {"train": {"kind": "sums", "count": 8}, "validation": None, "test": 2},
        "train": {"batch": {"records": 4}, "optimizer": {"lr": 1e-3}},
        "budget": {"updates": 8},
        "generate": {"max_new_tokens": 4},
        "evaluate": {"perplexity": False, "limit": 2},
        "steps": {
            # A step costs seconds: only the first, from which others start, and those that the keys name.
            **{name: step for name, step in before.items() if name in (*named, MODELS[0])},
            TRIED: tried,
            "last": {"do": "train", "data": TRIED if "records" in verb.leaves else DATA},
        },
    }


def _name_of(part: type[Verb]) -> str:
    """What `do` names: a packaged verb, or the file of the user's that holds the class."""
    path = Path(str(sys.modules[part.__module__].__file__))
    return path.stem if PACKAGE in path.parents else str(path)


def _unmeasured(facts: Any) -> Any:
    """Facts without times and memory."""
    if not isinstance(facts, Mapping):
        return facts
    return {name: _unmeasured(fact) for name, fact in facts.items() if not any(word in name for word in MEASURED)}


def checks(part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of a verb, in the order they are run."""
    yield "every key is described", lambda: check_described(part)
    yield "an unknown key is refused", lambda: check_unknown_key(part)
    yield "runs in a pipeline; again and resumed: the same", lambda: check_repeats(part)
