"""The tree of a recipe: every key with its default. Options of parts have theirs in the files of the parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, ValidationInfo, WithJsonSchema, model_validator

from luthier import parts
from luthier.families import families
from luthier.recipe import specs
from luthier.recipe.blocks import (
    AUTO_SCHEMA,
    NULL_SCHEMA,
    PART_SCHEMA,
    PARTS_SCHEMA,
    SOURCE_SCHEMA,
    BatchSettings,
    Block,
    Count,
    Data,
    Model,
    Save,
    Source,
    TrainSettings,
    any_of,
    source_or_null,
)
from luthier.recipe.sampling import RL, Denoise, GenerateSettings, Sample, rollout
from luthier.recipe.specs import SUMS
from luthier.recipe.steps import check_steps

__all__ = [
    "AUTO",
    "LISTS",
    "PARTS",
    "RL",
    "SOURCES",
    "BatchSettings",
    "Block",
    "BudgetSettings",
    "Compare",
    "Data",
    "Denoise",
    "EvaluateSettings",
    "GenerateSettings",
    "Model",
    "Path",
    "Sample",
    "Save",
    "Settings",
    "Source",
    "TrainSettings",
    "copy",
    "expand",
    "part_specs",
]

Path = tuple[str, ...]

PARTS: dict[Path, str] = {
    ("train", "objective"): "objective",
    ("train", "tuner"): "tuner",
    ("train", "select"): "selector",
    ("train", "optimizer"): "optimizer",
    ("train", "schedule"): "schedule",
    ("rl", "strategy"): "strategy",
    ("rl", "advantages"): "advantage",
    ("rl", "generate", "sampler"): "sampler",
    ("generate", "sampler"): "sampler",
    ("reward",): "reward",
    ("evaluate", "metric"): "metric",
}
SOURCES: tuple[Path, ...] = (("data", "train"), ("data", "validation"), ("data", "test"), ("evaluate", "retain"))
LISTS: tuple[Path, ...] = (("train", "objective"), ("train", "tuner"), ("rl", "advantages"), ("reward",))
AUTO: tuple[Path, ...] = (("reward",), ("evaluate", "metric"))
"""Keys that may be `auto` instead of a part."""


def slots() -> tuple[str, ...]:
    """All slots: those that recipes name first, in the order in which recipes are written, then the others."""
    return tuple(dict.fromkeys([*PARTS.values(), *families()]))


class BudgetSettings(Block):
    """How long to train: exactly one of its keys is set."""

    epochs: float | None = Field(
        default=None, gt=0, description="Passes over the training records; parts of one are allowed (0.5)."
    )
    records: Count | None = Field(default=None, description="Records trained on, counted each time they are drawn.")
    tokens: Count | None = Field(
        default=None,
        description="Tokens that go through the backward pass. It gives methods that train on fewer tokens per record "
        "more records.",
    )
    updates: Count | None = Field(
        default=None, description="Steps of the optimiser, of `train.batch.records` records each."
    )
    seconds: float | None = Field(
        default=None,
        gt=0,
        description="Seconds of training on this machine. Such a run cannot be repeated bit for bit.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> BudgetSettings:
        written = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(written) != 1:
            names = ", ".join(type(self).model_fields)
            raise ValueError(f"give exactly one of {names}; found {' and '.join(written) or 'none'}")
        return self

    @property
    def unit(self) -> str:
        """The key that is set."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def amount(self) -> float:
        """The setting of that key."""
        return getattr(self, self.unit)


class EvaluateSettings(Block):
    """How results are scored, and what must not be forgotten."""

    metric: Annotated[
        Literal["auto"] | dict[str, Any], PlainValidator(specs.metric), any_of(AUTO_SCHEMA, *PART_SCHEMA["anyOf"])
    ] = Field(
        default="auto",
        description="The metric of answers, such as `exact`, `number` or ./mine.py; auto chooses by the shape of the "
        "references and says why.",
    )
    retain: Annotated[
        dict[str, Any] | None, PlainValidator(source_or_null), any_of(*SOURCE_SCHEMA["anyOf"], NULL_SCHEMA)
    ] = Field(
        default=None,
        description="Records that measure forgetting, scored in addition to the test records; `retain` is a bundled "
        "set of short questions, null scores none.",
    )
    limit: Count | None = Field(
        default=None,
        description="Records of each set that are scored, at most, the same ones in every run; null scores all. Fewer "
        "are faster and widen the intervals.",
    )
    perplexity: bool = Field(
        default=True,
        description="true reports the perplexity of the test answers, too. It never ranks methods; false saves one "
        "pass over them.",
    )
    sample: Sample | None = Field(
        default=None, description="How samples are drawn to be scored. For diffusion models only."
    )


def _seeds(value: Any) -> Any:
    """A whole number is a count of seeds, a list names them."""
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(type(number) is int and number >= 0 for number in numbers):  # true is an int, too
        raise ValueError("expected a number of seeds or a list of whole numbers")
    if isinstance(value, list) and len(set(value)) < len(value):
        raise ValueError("a seed is named twice")
    if value == 0:
        raise ValueError("expected at least one seed")
    return value


def _axes(value: Any) -> Any:
    """Dotted paths of the recipe, each with the list of values it takes."""
    if not isinstance(value, Mapping):
        raise ValueError("expected a block of `path: [values]`")
    for path, values in value.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"`{path}` needs a list of values, found {values!r}")
    return dict(value)


def _tune(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, Mapping) or set(value) <= {"seeds"}:
        raise ValueError("expected a block of `path: [values]`, or null")
    paths = {path: candidates for path, candidates in value.items() if path != "seeds"}
    return {**_axes(paths), "seeds": _seeds(value.get("seeds", 1))}


class Compare(Block):
    """Which methods are compared, over which seeds, and how each gets its learning rate."""

    methods: list[str] = Field(
        default=["sft"],
        min_length=1,
        description="The methods that `luthier compare` trains: names that `luthier methods` lists, files of your own, "
        "and compositions such as `dft+uds`.",
    )
    baseline: str = Field(
        default="first",
        description="What every method is compared with: one of the methods, `first` (the first of them) or `base` "
        "(the untrained model).",
    )
    seeds: Annotated[
        int | list[int],
        PlainValidator(_seeds),
        any_of({"type": "integer", "minimum": 1}, {"type": "array", "items": {"type": "integer", "minimum": 0}}),
    ] = Field(
        default=1,
        description="Runs per method: a number of seeds, or a list that names them. Take 3 or more: with one seed the "
        "difference between two runs of one method is not known.",
    )
    learning_rate: Literal["same", "advice", "tune"] = Field(
        default="same",
        description="How a method gets its learning rate: the recipe's for all (`same`), what each advises "
        "(`advice`), or the best of `compare.tune` on the validation records (`tune`).",
    )
    tune: Annotated[dict[str, Any] | None, PlainValidator(_tune), any_of({"type": "object"}, NULL_SCHEMA)] = Field(
        default=None,
        description="Values tried for each method, `{train.optimizer.lr: [5e-5, 2e-4], seeds: 1}`; the best on the "
        "validation records is taken. Every value costs one run per seed.",
    )
    axes: Annotated[dict[str, list[Any]], PlainValidator(_axes), WithJsonSchema({"type": "object"})] = Field(
        default={},
        description="Keys that the comparison itself varies, `{data.train.limit: [100, 400]}`: every method is trained "
        "at every value.",
    )

    @model_validator(mode="before")
    @classmethod
    def _tune_is_a_rule(cls, value: Any) -> Any:
        # Whoever writes values to try means them to be tried: `learning_rate: tune` need not be written too.
        if isinstance(value, Mapping) and value.get("tune") is not None and "learning_rate" not in value:
            return {**value, "learning_rate": "tune"}
        return value

    @model_validator(mode="after")
    def _rule_and_values_agree(self) -> Compare:
        if self.learning_rate == "tune" and self.tune is None:
            raise ValueError("`learning_rate: tune` needs values: `tune: {train.optimizer.lr: [5e-5, 2e-4]}`")
        if self.learning_rate != "tune" and self.tune is not None:
            raise ValueError(f"`tune` and `learning_rate: {self.learning_rate}` exclude each other")
        return self


def _steps(steps: Any, info: ValidationInfo) -> Any:
    """The steps checked; verbs in files of the user's start from the folder `base` of the validation's context."""
    return check_steps(steps, (info.context or {}).get("base"))


class Settings(Block):
    """A whole recipe, resolved."""

    name: str = Field(
        default="recipe",
        pattern=r"^[\w][\w.+-]*$",
        description="The name of the run's folder: letters, digits, `_`, `.`, `+`, `-`. Default: the file's name.",
    )
    model: Model = Field(description="The model to start from: a bundled name, a folder, a hub id, or a block.")
    data: Data = Field(description="The records, how they are split, rendered and cut.")
    train: TrainSettings = Field(
        default_factory=TrainSettings,
        description="What is minimised, what is trained, on which of the records drawn, and how.",
    )
    rl: Annotated[
        RL | Denoise | None,
        BeforeValidator(rollout),
    ] = Field(
        default=None,
        description="How the model's own samples become training rows; null trains on the records. Language models "
        "and diffusion models have a grammar each, chosen by `kind`. Of diffusion models it is read by objectives that "
        "learn from samples (`diffusion_nft`), and by no other.",
    )
    reward: Annotated[
        Literal["auto"] | list[dict[str, Any]],
        PlainValidator(specs.reward),
        any_of(AUTO_SCHEMA, *PARTS_SCHEMA["anyOf"]),
    ] = Field(
        default="auto",
        description="What a good answer or sample is: a reward, ./mine.py, or a list whose weighted sum counts; auto "
        "is the metric of the evaluation (language models). Rollouts of diffusion models need a reward; it also scores "
        "the evaluation.",
    )
    steps: Annotated[
        dict[str, dict[str, Any]] | None, PlainValidator(_steps), any_of({"type": "object"}, NULL_SCHEMA)
    ] = Field(
        default=None,
        description="A pipeline: an ordered block of named steps that train, generate, select, score or loop; null is "
        "one training.",
    )
    budget: BudgetSettings = Field(
        default_factory=lambda: BudgetSettings(epochs=2),
        description="How long to train: exactly one of its keys. Methods of a comparison get the same.",
    )
    evaluate: EvaluateSettings = Field(
        default_factory=EvaluateSettings, description="How results are scored, and what must not be forgotten."
    )
    generate: GenerateSettings = Field(
        default_factory=GenerateSettings, description="How answers are generated in evaluations and `generate` steps."
    )
    compare: Compare = Field(
        default_factory=Compare, description="Which methods are compared, over which seeds, at which learning rate."
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,
        description="The seed of a run: order of the records, adapters, sampling. The same seed gives the same result "
        "on the same machine.",
    )
    observe: list[Literal["progress"]] = Field(
        default=["progress"], description="What a run shows while it goes on; an empty list shows nothing."
    )
    out: str = Field(default="runs", description="The folder that run folders are made in.")

    @model_validator(mode="before")
    @classmethod
    def _shorthands(cls, value: Any) -> Any:
        return expand(value) if isinstance(value, Mapping) else value


def expand(data: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with shorthands written out: a model's path, a part's name, a source's path or name."""
    full = copy(data)
    if isinstance(full.get("model"), str):
        full["model"] = {"path": full["model"]}
    for path in PARTS:
        block = _block_at(full, path[:-1])
        if block is not None and path[-1] in block:
            block[path[-1]] = _expand_part(path, block[path[-1]])
    for block, key in SOURCES:
        if isinstance(full.get(block), dict) and isinstance(full[block].get(key), str | list):
            full[block][key] = _expand_source(full[block][key])
    return full


def copy(value: Any) -> Any:
    """A deep copy of blocks and lists; tuples become lists, as they are in JSON."""
    if isinstance(value, Mapping):
        return {key: copy(below) for key, below in value.items()}
    return [copy(member) for member in value] if isinstance(value, list | tuple) else value


def part_specs(data: Mapping[str, Any]) -> list[tuple[Path, str, dict[str, Any]]]:
    """(path, slot, description) of every part that a recipe with all shorthands written out names."""
    specs: list[tuple[Path, str, dict[str, Any]]] = []
    for path, slot in PARTS.items():
        written = (_block_at(data, path[:-1]) or {}).get(path[-1])
        if isinstance(written, list):
            for index, member in enumerate(written):
                spec = member.get(SUMS[path][0], member) if path in SUMS else member
                specs.append(((*path, str(index)), slot, spec))
        elif isinstance(written, dict):
            specs.append((path, slot, written))
    for path in SOURCES:
        source = (_block_at(data, path[:-1]) or {}).get(path[-1])
        if isinstance(source, dict) and "kind" in source:
            specs.append((path, "dataset", source))
    return specs


def _block_at(block: Any, path: Path) -> Any:
    """The block at a path, or None if there is none."""
    for key in path:
        block = block.get(key) if isinstance(block, dict) else None
    return block if isinstance(block, dict) else None


def _expand_part(path: Path, written: Any) -> Any:
    """A part, or a list of parts, with each name as a block of `kind`."""
    if written == "auto" and path in AUTO:
        return written
    if isinstance(written, str):
        written = {"kind": written}
    if path not in LISTS:
        return written
    if path in (("reward",), ("rl", "advantages")) and isinstance(written, dict):
        written = [written]
    if not isinstance(written, list):
        return written
    members = [{"kind": member} if isinstance(member, str) else member for member in written]
    return [_expand_summand(member, *SUMS[path]) for member in members] if path in SUMS else members


def _expand_summand(member: Any, part: str, factor: str) -> Any:
    """A member of a weighted sum as a block of `part` and `factor`; `{kind: math, weight: 0.2}` is short for it."""
    if not isinstance(member, dict):
        return member
    if part not in member:
        options = {key: setting for key, setting in member.items() if key != factor}
        return {part: options, factor: member.get(factor, 1.0)}
    inner = member[part]
    return {factor: 1.0, **member, part: {"kind": inner} if isinstance(inner, str) else inner}


def _expand_source(text: str | list[Any]) -> Any:
    """A share stays; the name of a bundled data set or a part file is a kind; anything else is a path, or several."""
    if isinstance(text, list):
        return {"path": text}
    if text.endswith("%"):
        return text
    bundled = re.fullmatch(r"[a-z0-9_]+", text) and any(entry.name == text for entry in parts.catalogue("dataset"))
    return {"kind": text} if bundled or text.endswith(".py") else {"path": text}
