"""From merged layers to a checked recipe: every default written out, every part built once to check its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier import parts
from luthier.errors import RecipeError
from luthier.recipe import lock
from luthier.recipe.merge import DEFAULT, Merged, describe, leaves, unknown_key
from luthier.recipe.modality import fill_in, refuse_foreign
from luthier.recipe.settings import SOURCES, Settings, Source, copy, part_specs
from luthier.recipe.steps import StepError


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe.

    Attributes:
        settings: the checked tree; parts stay descriptions until built.
        data: the same as plain values.
        origins: where each value came from, by dotted path: "default", "recipe mine.yaml:12",
            "method asft", "advice of asft", "command line".
        base: the folder that relative paths start from.
        text_of_parts: the source of every part file of the user's that it names.
    """

    settings: Settings
    data: dict[str, Any]
    origins: dict[str, str]
    base: Path
    text_of_parts: dict[str, str]

    @property
    def name(self) -> str:
        return self.settings.name

    def to_lock(self, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The lock: everything that `load_recipe` needs to repeat this recipe, with versions, as plain JSON.

        Args:
            extra: further keys of the lock, such as data hashes.
        """
        return lock.make_lock(self.name, self.base, self.data, self.origins, self.text_of_parts, dict(extra or {}))

    def with_seed(self, seed: int) -> Recipe:
        """This recipe at another seed. No file is read again."""
        settings = self.settings.model_copy(update={"seed": seed})
        return replace(self, settings=settings, data={**copy(self.data), "seed": seed})

    def build_parts(self) -> dict[str, parts.Part]:
        """Every part that the recipe names, built, by dotted path (members of a list: `train.tuner.0`)."""
        return {".".join(key): parts.build(slot, spec, self.base) for key, slot, spec in part_specs(self.data)}


def resolve(merged: Merged, name: str, base: Path) -> Recipe:
    """Check merged layers, fill in every default, and build each part once to check its options.

    Raises:
        RecipeError: names the place and the key.
    """
    merged.data.setdefault("name", name)
    fill_in(merged.data, base, merged.origin)
    try:
        settings = Settings.model_validate(merged.data, context={"base": base})
    except ValidationError as error:
        raise _explain(error, merged) from None
    data = settings.model_dump()
    data["budget"] = {settings.budget.unit: settings.budget.amount}
    if settings.evaluate.sample is None:
        del data["evaluate"]["sample"]  # a key of diffusion models; hashes of other recipes were made without it
    refuse_foreign(settings, base, merged.origin)
    _fill_options(data, merged, base)
    texts = lock.part_files(data, base)
    written = merged.writings()
    origins = {".".join(key): merged.origin(key) if written(key) else DEFAULT for key, _ in leaves(data)}
    return Recipe(Settings.model_validate(data, context={"base": base}), data, origins, base, texts)


def _fill_options(data: dict[str, Any], merged: Merged, base: Path) -> None:
    """Build every part, which checks its options, and write out the defaults of options that are not written."""
    for key, slot, spec in part_specs(data):
        try:
            part = parts.build(slot, spec, base)
        except RecipeError as error:
            where = merged.origin((*key, _named_option(error, spec)))
            raise RecipeError(f"{where}: {'.'.join(key)}: {error.message}", error.hint) from None
        other = getattr(part, "SLOT", slot)
        if other != slot:
            where = merged.origin((*key, "kind"))
            raise RecipeError(f"{where}: {'.'.join(key)}: `{spec['kind']}` is no {slot}, it is of the family {other}.")
        for option in type(part).model_fields:
            spec.setdefault(option, _as_written(getattr(part, option)))


def _named_option(error: RecipeError, spec: Mapping[str, Any]) -> str:
    """The option that an error of a part names, to tell where it was written; else `kind`."""
    return next((name for name in spec if f"`{name}`" in error.message or f".{name}:" in error.message), "kind")


def _as_written(option: Any) -> Any:
    """The setting of an option as a recipe would write it: a part is a block of its kind and its options."""
    if not isinstance(option, parts.Part):
        return copy(option)
    block: dict[str, Any] = {"kind": option.kind}
    for name in type(option).model_fields:
        block[name] = _as_written(getattr(option, name))
    return block


def _explain(error: ValidationError, merged: Merged) -> RecipeError:
    """The first of pydantic's errors as one sentence."""
    from luthier.recipe import (
        keys,  # imported here: only errors need the descriptions, and every command loads a recipe
    )

    faults = error.errors()
    # A mistyped key comes first: it may be the reason why another key is missing.
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    key = tuple(str(piece) for piece in first["loc"])
    dotted_key, where = ".".join(key), merged.origin(key)
    if first["type"] == "missing":
        return RecipeError(f"The recipe has no `{dotted_key}`.", f"Write `{dotted_key}:` in it.")
    if first["type"] == "extra_forbidden":
        block = Source if key[:-1] in SOURCES else keys.block_at(key[:-1], merged.data)
        return unknown_key(key, list(block.model_fields), where)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, StepError) and cause.path:
        return RecipeError(f"{merged.origin((*key, *cause.path))}: {cause}.")
    written, (what, hint) = describe(first.get("input")), parts.in_words(first)
    hint = hint or keys.description_of(key, merged.data)
    # The messages of our own validators name the keys of a block: "found a block of keys" would add nothing.
    if first["type"] == "value_error" and isinstance(first.get("input"), dict | list):
        return RecipeError(f"{where}: {dotted_key}: {what}.", hint)
    return RecipeError(f"{where}: {dotted_key}: {what}; found {written}.", hint)
