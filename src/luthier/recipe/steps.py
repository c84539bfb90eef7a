"""The grammar of `steps:`, a pipeline: an ordered mapping from names to blocks with `do:`.

What a step does is a part of the slot `verb`, and the options of that part are the keys of the step. A step reads the
recipe with its own blocks merged into it. It refers to an earlier step by name: to its model (`base` and `newest`
always exist), or to its records (`data` are the recipe's, `chunk` a loop round's share of them).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from luthier import parts
from luthier.errors import RecipeError, nearest

BASE, NEWEST, DATA, CHUNK = "base", "newest", "data", "chunk"
SLOT = "verb"
Kind = Literal["model", "records"]
"""What later steps can refer to under a step's name."""


@dataclass(frozen=True)
class StepReference:
    """Marks an option of a verb that names models or records of earlier steps: one name, or a list.

    `data: Annotated[str | list[str], StepReference("records")]`. The grammar refuses a name that no earlier step has.
    """

    to: Kind


class StepError(ValueError):
    """A mistake in a step; `path` leads from `steps` to the key."""

    def __init__(self, path: Sequence[str], message: str):
        super().__init__(message)
        self.path = tuple(path)


@dataclass(frozen=True)
class _Scope:
    """The names that a step may refer to, the keys above the step, and the folder of the recipe's files."""

    models: tuple[str, ...] = (BASE, NEWEST)
    records: tuple[str, ...] = (DATA,)
    path: tuple[str, ...] = ()
    base: Path | None = None

    def after(self, name: str, leaves: Sequence[Kind]) -> _Scope:
        """The scope of the step that follows one of this name."""
        return replace(
            self,
            models=(*self.models, name) if "model" in leaves else self.models,
            records=(*self.records, name) if "records" in leaves else self.records,
        )

    def inside(self, name: str) -> _Scope:
        """The scope of the first step in the body of a step of this name."""
        return replace(self, records=(*self.records, CHUNK), path=(*self.path, name, "steps"))


@dataclass(frozen=True)
class _Step:
    """A checked step: its keys with the defaults written out, and its verb."""

    block: dict[str, Any]
    verb: Any


def check_steps(steps: Any, base: Path | None = None) -> dict[str, dict[str, Any]] | None:
    """Check a pipeline and write out the defaults of every step.

    Args:
        base: the folder that verbs in files of the user's (`do: ./mine.py`) are looked up in.

    Raises:
        StepError: names the step and the key.
    """
    if steps is None:
        return None
    checked = _check_all(steps, _Scope(base=base))
    if not any(_shares(step.verb) for step in checked.values()):
        raise StepError((), "no step trains: add one that does `train` or `rl`")
    return {name: step.block for name, step in checked.items()}


def build_verb(do: str, block: Mapping[str, Any], base: Path | None) -> Any:
    """The part that carries out a step.

    Args:
        do: the name of a verb, or a file that holds one.
        block: the keys of the step; `do` among them is ignored.

    Raises:
        RecipeError: there is no such verb.
        pydantic.ValidationError: a key is wrong.
    """
    verb = _load(do, base)
    return verb(**{key: setting for key, setting in block.items() if key != "do"})


def _load(do: str, base: Path | None) -> type[Any]:
    verb = parts.load(SLOT, do, base)
    if getattr(verb, "SLOT", None) != SLOT:
        raise RecipeError(
            f"{verb.__name__} in {do} is no verb.", "Derive it from Verb (`from luthier.steps.verbs.base import Verb`)."
        )
    unknown = next((kind for kind in verb.LEAVES if kind not in get_args(Kind)), None)
    if unknown is not None:  # nothing would find it, and the step would seem to leave nothing
        raise RecipeError(f"{verb.__name__} in {do}: LEAVES names `{unknown}`.", "A step leaves `model` or `records`.")
    return verb


def names_in(verb: Any, to: Kind) -> list[tuple[str, str]]:
    """(key, name) of every model, or of all records, that the options of a verb refer to."""
    pairs: list[tuple[str, str]] = []
    for field_name, field in type(verb).model_fields.items():
        if StepReference(to) in field.metadata:
            written = getattr(verb, field_name)
            names = written if isinstance(written, list) else [written]
            pairs += [(_key(field_name, field), name) for name in names if name is not None]
    return pairs


def keys_of(verb: type[Any]) -> dict[str, FieldInfo]:
    """The keys of a step of this verb. `from` is the alias of a field, since Python reserves the word."""
    return {_key(name, field): field for name, field in verb.model_fields.items()}


def _key(field_name: str, field: FieldInfo) -> str:
    return field.alias or field_name


def _shares(verb: Any) -> bool:
    """Whether a step uses a share of the budget: it trains, or its body does."""
    return "share" in type(verb).model_fields


def _check_all(steps: Any, scope: _Scope) -> dict[str, _Step]:
    if not isinstance(steps, Mapping) or not steps:
        raise StepError(scope.path, "expected an ordered block of steps, each a name and its block")
    checked: dict[str, _Step] = {}
    for name, block in steps.items():
        if not re.fullmatch(r"[a-z]\w*", str(name)) or name in (BASE, NEWEST, DATA, CHUNK):
            raise StepError(
                (*scope.path, str(name)),
                f"`{name}` cannot name a step: small letters, digits, _; not base, newest, data, chunk",
            )
        checked[name] = _check(name, {} if block is None else block, scope)
        scope = scope.after(name, checked[name].verb.leaves)
    _divide_budget(checked, scope)
    return checked


def _check(name: str, block: Any, scope: _Scope) -> _Step:
    here = (*scope.path, name)
    if not isinstance(block, Mapping):
        raise StepError(here, f"step `{name}` is not a block of keys")
    do = block.get("do", name)
    keys = keys_of(_verb_of(name, do, (*here, "do") if "do" in block else here, scope))
    unknown = next((key for key in block if key not in (*keys, "do")), None)
    if unknown is not None:
        close = nearest(str(unknown), list(keys))
        hint = f"did you mean `{close}`" if close else f"it has {', '.join(keys)}"
        raise StepError((*here, str(unknown)), f"step `{name}` ({do}) has no key `{unknown}`: {hint}")
    block = {**block, "do": do}
    if "data" in keys:  # inside a loop the default is the round's share, not all records
        block.setdefault("data", CHUNK if CHUNK in scope.records else DATA)
    try:
        verb = build_verb(do, block, scope.base)
    except ValidationError as error:
        raise _in_words(name, do, here, error) from None
    _refuse_unknown_names(name, verb, scope)
    block = {"do": do, **_written_out(verb)}
    if "steps" in keys:
        body = _check_all(block["steps"], scope.inside(name))
        block["steps"] = {inner: step.block for inner, step in body.items()}
        try:
            verb.check_body({inner: step.verb for inner, step in body.items()})
        except ValueError as error:
            raise StepError((*here, "steps"), f"step `{name}`: {error}") from None
    return _Step(block, verb)


def _refuse_unknown_names(name: str, verb: Any, scope: _Scope) -> None:
    """Raise StepError for a model or records that no earlier step has."""
    references = [(pair, scope.models) for pair in names_in(verb, "model")]
    references += [(pair, scope.records) for pair in names_in(verb, "records")]
    for (key, target), known in references:
        if target not in known:
            message = f"step `{name}`: {key}: {target!r} is not known here; known: {', '.join(known)}"
            raise StepError((*scope.path, name, key), message)


def _verb_of(name: str, do: Any, where: tuple[str, ...], scope: _Scope) -> type[Any]:
    """The class behind `do`: the name of a verb, or a file of the user's. `where` is the key that an error names."""
    known = [entry.name for entry in parts.catalogue(SLOT)]
    if do not in known and not (isinstance(do, str) and do.endswith(".py")):
        close = nearest(str(do), known)
        hint = f"did you mean `{close}`" if close else f"give it one of {', '.join(known)} or ./FILE.py as `do`"
        does = f"does `{do}`, which is no verb" if where[-1] == "do" else "has no `do`, and its name is no verb"
        raise StepError(where, f"step `{name}` {does}: {hint}")
    try:
        return _load(do, scope.base)
    except RecipeError as error:
        hint = f" {error.hint.rstrip('.')}" if error.hint else ""
        raise StepError(where, f"step `{name}`: {error.message if hint else error.message.rstrip('.')}{hint}") from None


def _in_words(name: str, do: str, here: tuple[str, ...], error: ValidationError) -> StepError:
    """The first of pydantic's errors about the keys of a step, as one sentence."""
    fault = error.errors()[0]
    key = str(fault["loc"][0]) if fault["loc"] else ""
    if fault["type"] == "missing":
        return StepError(here, f"step `{name}`: a step that does `{do}` needs `{key}`")
    what, hint = parts.in_words(fault)
    written = "" if fault["type"] == "value_error" else f", found {fault.get('input')!r}"
    message = f"step `{name}`: {f'{key}: ' if key else ''}{what}{written}"
    return StepError((*here, key) if key else here, f"{message}. {hint}" if hint else message)


def _written_out(verb: Any) -> dict[str, Any]:
    """Every key with its setting. A block that is not written stays out: its presence changes what the step does."""
    settings: dict[str, Any] = {}
    for name, field in type(verb).model_fields.items():
        is_block = name in verb.OVERLAYS or _holds_block(field)
        if name in verb.model_fields_set or not is_block:
            settings[_key(name, field)] = getattr(verb, name)
    return settings


def _holds_block(field: FieldInfo) -> bool:
    kinds = (field.annotation, *get_args(field.annotation))
    return any(get_origin(kind) is dict for kind in kinds)


def _divide_budget(steps: Mapping[str, _Step], scope: _Scope) -> None:
    """Write out the share of the budget of every step that trains; steps without one divide the rest evenly."""
    blocks = {name: step.block for name, step in steps.items() if _shares(step.verb)}
    written = sum(block.get("share") or 0 for block in blocks.values())
    without = [block for block in blocks.values() if block.get("share") is None]
    # 1e-9: shares such as 0.7, 0.2 and 0.1 add up to a little more than 1 in floating point.
    if written > 1 + 1e-9 or (without and written >= 1):
        message = f"the shares of the steps add up to {written:g}, and {len(without)} step(s) have none"
        raise StepError(scope.path, message)
    for block in without:
        block["share"] = (1 - written) / len(without)
