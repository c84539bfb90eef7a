"""The tree of a recipe: every key with its default, except the options of parts, whose defaults stand in the parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator

from luthier import parts
from luthier.recipe import specs
from luthier.recipe.specs import SUMS
from luthier.recipe.steps import check_steps
from luthier.types import Sampling

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
"""Where `auto` may stand instead of a part."""


class SettingsBlock(BaseModel):
    """A frozen block of the recipe that refuses unknown keys and never converts text to numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


def _whole(value: Any) -> Any:
    """`1e6` is a float in YAML; as a count it means a million."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _auto_or_count(value: Any) -> Any:
    value = _whole(value)
    if value == "auto" or (type(value) is int and value > 0):
        return value
    raise ValueError("expected `auto` or a whole number above 0")


def _auto_count_or_null(value: Any) -> Any:
    return None if value is None else _auto_or_count(value)


Count = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
AutoCount = Annotated[Literal["auto"] | int, PlainValidator(_auto_or_count)]
AutoCountOrNull = Annotated[Literal["auto"] | int | None, PlainValidator(_auto_count_or_null)]


class SourceSettings(SettingsBlock):
    """Records in a file, a folder or a data set of the hub."""

    path: str
    columns: dict[str, str] = {}
    limit: Count | None = None
    split: str | None = None
    config: str | None = None


def _source(value: Any) -> Any:
    if isinstance(value, Mapping) and "kind" in value:
        return specs.part(value)
    return SourceSettings.model_validate(value).model_dump()


def _source_or_null(value: Any) -> Any:
    return None if value is None else _source(value)


def _split(value: Any) -> Any:
    """A share of the training records, a number of them, records of its own, or none."""
    if isinstance(value, str):
        share = float(value[:-1]) if re.fullmatch(r"\d+(\.\d+)?%", value) else 0.0
        if not 0 < share < 100:
            raise ValueError("expected a share between 0% and 100%")
        return value
    value = _whole(value)
    if value is None or (type(value) is int and value > 0):
        return value
    if isinstance(value, Mapping):
        return _source(value)
    raise ValueError("expected a share such as `10%`, a number of records, a source or null")


PartSpec = Annotated[dict[str, Any], PlainValidator(specs.part)]
SourceSpec = Annotated[dict[str, Any], PlainValidator(_source)]
SplitSpec = Annotated[str | int | dict[str, Any] | None, PlainValidator(_split)]


class Model(SettingsBlock):
    """Which model: a hub id, a folder or a bundled name. `dtype` is how its weights are stored.

    `config` instead of `path`: a model with random weights drawn from `seed`, by what its library (diffusers or
    transformers) writes into config.json. `seed` is not the run's, so that all runs start from one model.
    """

    path: str
    config: dict[str, Any] | None = None
    seed: int = Field(default=0, ge=0, lt=2**32)
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    remote_code: bool = False

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """A model made from a config is called by its class."""
        if not isinstance(value, Mapping) or not isinstance(value.get("config"), Mapping):
            return value
        name = f"random {value['config'].get('_class_name') or value['config'].get('model_type')}"
        if value.get("path", name) != name:
            raise ValueError("`path` and `config` exclude each other: a model is loaded, or made from a config")
        return {**value, "path": name}


class Data(SettingsBlock):
    """The records, how they are split, rendered and cut."""

    train: SourceSpec
    validation: SplitSpec = "10%"
    test: SplitSpec = "15%"
    split_seed: int = 0
    render: str = "chat"
    targets: Literal["auto", "assistant", "completion", "all"] = "auto"
    max_tokens: Count = 1024
    too_long: Literal["drop", "truncate", "error"] = "drop"
    deduplicate: bool = True


class BatchSettings(SettingsBlock):
    """Records per update and how they are cut into forward passes. `micro` counts tokens per forward.

    `order: written` takes records as the data set has them, epoch after epoch (a curriculum).
    `layout: shared` reads a prompt once for the answers to it; auto does so where model and parts allow.
    """

    records: Count = 16
    order: Literal["shuffled", "written"] = "shuffled"
    micro: AutoCount = "auto"
    layout: Literal["auto", "packed", "padded", "shared"] = "auto"


class Save(SettingsBlock):
    """Checkpoints: one every so many updates (null: only at the end), the newest `keep` stay."""

    every: AutoCountOrNull = "auto"
    keep: Count = 2


class Train(SettingsBlock):
    """What is minimised, what is trained, on which of the records drawn (`select`), and how."""

    objective: Annotated[dict[str, Any] | list[dict[str, Any]], PlainValidator(specs.objective)] = {"kind": "sft"}
    tuner: Annotated[dict[str, Any] | list[dict[str, Any]], PlainValidator(specs.tuner)] = {"kind": "lora"}
    select: Annotated[dict[str, Any] | None, PlainValidator(specs.part_or_null)] = None
    optimizer: PartSpec = {"kind": "adamw"}
    schedule: PartSpec = {"kind": "cosine"}
    batch: BatchSettings = Field(default_factory=BatchSettings)
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    checkpointing: bool = False
    save: Save = Field(default_factory=Save)


class Generate(SettingsBlock):
    """How answers are generated. `batch` counts prompts generated together.

    At a temperature above 0, `top_p` draws from the likeliest tokens that together have this share, and `min_p` from
    those that have at least this share of the likeliest one's probability. An answer ends before the first of `stop`.
    In a `generate` step, `sampler` may have another model answer.
    """

    max_new_tokens: Count = 256
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, lt=1)
    stop: list[Annotated[str, Field(min_length=1)]] = []
    batch: AutoCount = "auto"
    sampler: PartSpec = {"kind": "native"}

    def sampling(self) -> Sampling:
        """What a sampler is told."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.min_p, tuple(self.stop))

    @property
    def rows(self) -> int | None:
        """Prompts generated together; None leaves it to the sampler."""
        return None if self.batch == "auto" else self.batch


def _auto_or_number(value: Any) -> Any:
    if value == "auto":
        return value
    if specs.is_number(value) and value > 0:
        return float(value)
    raise ValueError("expected `auto` or a number above 0")


class Sample(SettingsBlock):
    """How a denoiser's samples are drawn in evaluation: a solver in `steps` steps from noise to a sample.

    `shift` above 1 spends more of the steps near the noise; auto is what the model's scheduler says.
    """

    solver: Literal["euler", "dpm2"] = "dpm2"
    steps: Count = 10
    shift: Annotated[Literal["auto"] | float, PlainValidator(_auto_or_number)] = "auto"


class RolloutSettings(SettingsBlock):
    """How a denoiser draws what it learns from, if its objective asks for that (`diffusion_nft`): `groups` conditions
    with `size` samples each, judged by `reward`.

    A rollout is cut into `updates` updates, each sample at the first `level_share` of its solver's levels; then the
    sampling parameters move by `decay` (0: to the trained ones, 1 and 2: the slower the more updates are done). Groups
    count whose rewards spread above `min_std` around a mean below `max_mean` (null: all). `forward`: samples per
    forward.
    """

    groups: Count = 8
    size: Count = 24
    solver: Literal["euler", "dpm2"] = "dpm2"
    steps: Count = 10
    level_share: float = Field(default=0.99, gt=0, le=1)
    updates: Count = 1
    decay: Literal[0, 1, 2] = 1
    adv_clip: float = Field(default=5.0, gt=0)
    adv_mode: Literal["all", "positive_only", "negative_only", "one_only", "binary"] = "all"
    min_std: float | None = Field(default=None, ge=0)
    max_mean: float = 0.9
    forward: Count = 256


class RL(SettingsBlock):
    """How an `rl` step makes its training rows: sample answers, judge them, turn rewards into advantages.

    A rollout draws `train.batch.records` prompts, is cut into `updates` updates, and is gone through `passes`
    times. With `refill` the prompts whose answers all got one reward are replaced by others, in up to so many
    further draws. `train_cut_off: false` masks answers that ran into max_new_tokens.
    """

    strategy: Annotated[dict[str, Any], PlainValidator(specs.strategy)] = {"kind": "plain"}
    advantages: Annotated[list[dict[str, Any]], PlainValidator(specs.chain)] = [{"kind": "group_norm"}]
    generate: Generate = Field(default_factory=lambda: Generate(temperature=1.0))
    updates: Count = 1
    passes: Count = 1
    refill: Annotated[int, BeforeValidator(_whole), Field(ge=0)] = 0
    train_cut_off: bool = True

    @model_validator(mode="before")
    @classmethod
    def _samples(cls, value: Any) -> Any:
        """Answers are drawn, so the temperature is 1 unless it is written."""
        if isinstance(value, Mapping) and isinstance(value.get("generate"), Mapping):
            return {**value, "generate": {"temperature": 1.0, **value["generate"]}}
        return value


class BudgetSettings(SettingsBlock):
    """How long to train: exactly one of its keys is set."""

    epochs: float | None = Field(default=None, gt=0)
    records: Count | None = None
    tokens: Count | None = None
    updates: Count | None = None
    seconds: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _exactly_one(self) -> BudgetSettings:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            names = ", ".join(type(self).model_fields)
            raise ValueError(f"give exactly one of {names}; found {' and '.join(given) or 'none'}")
        return self

    @property
    def unit(self) -> str:
        """The key that is set."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def amount(self) -> float:
        """Its value."""
        return getattr(self, self.unit)


class Evaluate(SettingsBlock):
    """How results are scored, and what must not be forgotten (`retain`)."""

    metric: Annotated[Literal["auto"] | dict[str, Any], PlainValidator(specs.metric)] = "auto"
    retain: Annotated[dict[str, Any] | None, PlainValidator(_source_or_null)] = None
    limit: Count | None = None
    perplexity: bool = True


def _seeds(value: Any) -> Any:
    """A whole number is a count of seeds, a list names them."""
    items = value if isinstance(value, list) else [value]
    if not items or not all(type(item) is int and item >= 0 for item in items):
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
    paths = {key: item for key, item in value.items() if key != "seeds"}
    return {**_axes(paths), "seeds": _seeds(value.get("seeds", 1))}


class Compare(SettingsBlock):
    """Which methods are compared, over which seeds, and how each gets its learning rate."""

    methods: list[str] = Field(default=["sft"], min_length=1)
    baseline: str = "first"
    seeds: Annotated[int | list[int], PlainValidator(_seeds)] = 1
    learning_rate: Literal["same", "advice", "tune"] = "same"
    tune: Annotated[dict[str, Any] | None, PlainValidator(_tune)] = None
    axes: Annotated[dict[str, list[Any]], PlainValidator(_axes)] = {}

    @model_validator(mode="before")
    @classmethod
    def _tune_is_a_rule(cls, value: Any) -> Any:
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


class Settings(SettingsBlock):
    """A whole recipe, resolved."""

    name: str = Field(default="recipe", pattern=r"^[\w][\w.+-]*$")
    model: Model
    data: Data
    train: Train = Field(default_factory=Train)
    rl: RL | None = None
    rollout: RolloutSettings = Field(default_factory=RolloutSettings)
    reward: Annotated[Literal["auto"] | list[dict[str, Any]], PlainValidator(specs.reward)] = "auto"
    steps: Annotated[dict[str, dict[str, Any]] | None, PlainValidator(check_steps)] = None
    budget: BudgetSettings = Field(default_factory=lambda: BudgetSettings(epochs=2))
    evaluate: Evaluate = Field(default_factory=Evaluate)
    generate: Generate = Field(default_factory=Generate)
    sample: Sample = Field(default_factory=Sample)
    compare: Compare = Field(default_factory=Compare)
    seed: int = Field(default=0, ge=0, lt=2**32)
    observe: list[Literal["progress"]] = ["progress"]
    out: str = "runs"

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
        if isinstance(full.get(block), dict) and isinstance(full[block].get(key), str):
            full[block][key] = _expand_source(full[block][key])
    return full


def copy(value: Any) -> Any:
    """A deep copy of plain blocks, lists and values."""
    if isinstance(value, Mapping):
        return {key: copy(item) for key, item in value.items()}
    return [copy(item) for item in value] if isinstance(value, list | tuple) else value


def part_specs(data: Mapping[str, Any]) -> list[tuple[Path, str, dict[str, Any]]]:
    """(path, slot, description) of every part that a recipe with all shorthands written out names."""
    specs: list[tuple[Path, str, dict[str, Any]]] = []
    for path, slot in PARTS.items():
        value = (_block_at(data, path[:-1]) or {}).get(path[-1])
        if isinstance(value, list):
            found = [item.get(SUMS[path][0], item) for item in value] if path in SUMS else value
            specs += [((*path, str(index)), slot, item) for index, item in enumerate(found)]
        elif isinstance(value, dict):
            specs.append((path, slot, value))
    for path in SOURCES:
        value = (_block_at(data, path[:-1]) or {}).get(path[-1])
        if isinstance(value, dict) and "kind" in value:
            specs.append((path, "dataset", value))
    return specs


def _block_at(data: Any, path: Path) -> Any:
    """The block at a path, or None where there is none."""
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else None


def _expand_part(path: Path, value: Any) -> Any:
    if value == "auto" and path in AUTO:
        return value
    if isinstance(value, str):
        value = {"kind": value}
    if path not in LISTS:
        return value
    if path in (("reward",), ("rl", "advantages")) and isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return value
    items = [{"kind": item} if isinstance(item, str) else item for item in value]
    return [_expand_summand(item, *SUMS[path]) for item in items] if path in SUMS else items


def _expand_summand(item: Any, part: str, factor: str) -> Any:
    if not isinstance(item, dict):
        return item
    if part not in item:
        return {part: {k: v for k, v in item.items() if k != factor}, factor: item.get(factor, 1.0)}
    inner = item[part]
    return {factor: 1.0, **item, part: {"kind": inner} if isinstance(inner, str) else inner}


def _expand_source(text: str) -> Any:
    """A share stays; the name of a bundled data set or a part file is a kind; anything else is a path."""
    if text.endswith("%"):
        return text
    bundled = re.fullmatch(r"[a-z0-9_]+", text) and any(entry.name == text for entry in parts.catalogue("dataset"))
    return {"kind": text} if bundled or text.endswith(".py") else {"path": text}
