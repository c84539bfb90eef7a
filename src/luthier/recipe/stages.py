"""The recipe of each step of a pipeline: the recipe with the step's own blocks merged into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from luthier import parts
from luthier.errors import RecipeError
from luthier.recipe.merge import DEFAULT, Key, Layer, Merged, check_keys
from luthier.recipe.resolve import Recipe, resolve
from luthier.recipe.settings import copy, expand
from luthier.recipe.steps import build_verb


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline.

    Attributes:
        do: the name or file of its verb.
        recipe: the recipe that it runs, without `steps`; its budget is the step's share.
        block: the keys of the step.
        share: its part of the budget of the pipeline, 0 to 1.
        body: of a loop, the stages of one round.
    """

    name: str
    do: str
    recipe: Recipe
    block: Mapping[str, Any]
    share: float = 1.0
    body: tuple[Stage, ...] = ()

    @cached_property
    def verb(self) -> Any:
        """The part that carries the step out, with the step's keys as its options."""
        return build_verb(self.do, self.block, self.recipe.base)


@dataclass(frozen=True)
class _WrittenIn(Layer):
    """The blocks of one step, whose keys come from the file and line that the whole recipe names for them.

    Attributes:
        origins: of the whole recipe.
        path: of the step in it.
    """

    origins: Mapping[str, str] = field(default_factory=dict)
    path: Key = ()

    def origin(self, key: Key) -> str:
        """File, line and step: "recipe mine.yaml:6: step answers"; of a key that nobody wrote, the block around it."""
        for length in range(len(key), -1, -1):
            dotted = ".".join((*self.path, *key[:length]))
            under = [origin for leaf, origin in self.origins.items() if f"{leaf}.".startswith(f"{dotted}.")]
            written = [origin for origin in under if origin != DEFAULT]
            if written:
                return f"{written[0]}: {self.label}"
        return self.label


def stages_of(recipe: Recipe) -> list[Stage]:
    """The steps of a recipe in order; a recipe without `steps` is one step, `rl` where it has that block.

    Raises:
        RecipeError: a step's blocks hold something unknown.
    """
    steps = recipe.settings.steps
    if steps is None:
        do = "train" if recipe.settings.rl is None else "rl"
        return [Stage(do, do, recipe, {"do": do, "from": "base", "data": "data"})]
    return list(_stages(recipe, steps, 1.0, ("steps",)))


def flat(stages: Sequence[Stage]) -> Iterator[Stage]:
    """All stages; the body of a loop follows the loop."""
    for stage in stages:
        yield stage
        yield from flat(stage.body)


def _stages(recipe: Recipe, steps: Mapping[str, Any], share: float, path: Key) -> Iterator[Stage]:
    for name, block in steps.items():
        own = share * (block.get("share") or 0.0)
        verb = build_verb(block["do"], block, recipe.base)
        written = _WrittenIn({}, f"step {name}", recipe.base, origins=recipe.origins, path=(*path, name))
        _refuse_unknown_parts(written, verb)
        if "steps" in block:
            body = tuple(_stages(recipe, block["steps"], own / verb.repeats, (*path, name, "steps")))
            yield Stage(name, block["do"], recipe, block, own, body)
        else:
            yield Stage(name, block["do"], _recipe_of(recipe, written, verb, own), block, own)


def _recipe_of(recipe: Recipe, written: _WrittenIn, verb: Any, share: float) -> Recipe:
    """The recipe of one step: its overlays merged in, its budget reduced to its share."""
    origins = {tuple(path.split(".")): origin for path, origin in recipe.origins.items()}
    merged = Merged(copy(recipe.data), origins)
    merged.data["steps"] = None
    verb.adapt(merged.data)
    overlay = replace(written, data=expand(verb.overlays()))
    check_keys(overlay)
    merged.add(overlay)
    if share and recipe.settings.budget.unit != "updates":
        merged.data["budget"] = {recipe.settings.budget.unit: recipe.settings.budget.amount * share}
    elif share:
        merged.data["budget"] = {"updates": max(1, round(recipe.settings.budget.amount * share))}  # a whole number
    return resolve(merged, recipe.name, recipe.base)


def _refuse_unknown_parts(written: _WrittenIn, verb: Any) -> None:
    """Raise RecipeError for a part that a key of the step names, and that does not exist or has other options."""
    for key, slot, spec in verb.named_parts():
        try:
            parts.build(slot, spec, written.folder)
        except RecipeError as error:
            raise RecipeError(f"{written.origin((key,))}: {key}: {error.message}", error.hint) from None
