"""The tree of a recipe: every key with its default, except the options of parts, whose defaults stand in the parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator

from luthier import parts

Path = tuple[str, ...]

PARTS: dict[Path, str] = {
    ("train", "objective"): "objective",
    ("train", "tuner"): "tuner",
    ("train", "optimizer"): "optimizer",
    ("train", "schedule"): "schedule",
    ("evaluate", "metric"): "metric",
}
SOURCES: tuple[Path, ...] = (("data", "train"), ("data", "validation"), ("data", "test"), ("evaluate", "retain"))
LISTS: tuple[Path, ...] = (("train", "objective"), ("train", "tuner"))


class Block(BaseModel):
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


def _part(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping) and isinstance(value.get("kind"), str):
        return dict(value)
    raise ValueError("expected the name of a part or a block with `kind`")


def _tuner(value: Any) -> Any:
    if isinstance(value, list):
        if not value:
            raise ValueError("the list is empty: name at least one tuner")
        return [_part(item) for item in value]
    return _part(value)


def _objective(value: Any) -> Any:
    if not isinstance(value, list):
        return _part(value)
    if not value:
        raise ValueError("the list is empty: name at least one objective")
    return [_summand(item) for item in value]


def _summand(item: Any) -> dict[str, Any]:
    if not isinstance(item, Mapping) or set(item) != {"objective", "coefficient"}:
        raise ValueError("each item of a sum is a part, or a block of `objective` and `coefficient`")
    if type(item["coefficient"]) not in (int, float):
        raise ValueError(f"`coefficient` is a number, found {item['coefficient']!r}")
    return {"objective": _part(item["objective"]), "coefficient": float(item["coefficient"])}


def _metric(value: Any) -> Any:
    return value if value == "auto" else _part(value)


class Source(Block):
    """Records in a file, a folder or a data set of the hub."""

    path: str
    columns: dict[str, str] = {}
    limit: Count | None = None
    split: str | None = None
    config: str | None = None


def _source(value: Any) -> Any:
    if isinstance(value, Mapping) and "kind" in value:
        return _part(value)
    return Source.model_validate(value).model_dump()


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


PartSpec = Annotated[dict[str, Any], PlainValidator(_part)]
SourceSpec = Annotated[dict[str, Any], PlainValidator(_source)]
SplitSpec = Annotated[str | int | dict[str, Any] | None, PlainValidator(_split)]


class Model(Block):
    """Which model: a hub id, a folder or a bundled name. `dtype` is how its weights are stored."""

    path: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    remote_code: bool = False


class Data(Block):
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


class BatchSettings(Block):
    """Records per update and how they are cut into forward passes. `micro` counts tokens per forward."""

    records: Count = 16
    micro: AutoCount = "auto"
    layout: Literal["auto", "packed", "padded"] = "auto"


class Save(Block):
    """Checkpoints: one every so many updates (null: only at the end), the newest `keep` stay."""

    every: AutoCountOrNull = "auto"
    keep: Count = 2


class Train(Block):
    """What is minimised, what is trained, and how."""

    objective: Annotated[dict[str, Any] | list[dict[str, Any]], PlainValidator(_objective)] = {"kind": "sft"}
    tuner: Annotated[dict[str, Any] | list[dict[str, Any]], PlainValidator(_tuner)] = {"kind": "lora"}
    optimizer: PartSpec = {"kind": "adamw"}
    schedule: PartSpec = {"kind": "cosine"}
    batch: BatchSettings = Field(default_factory=BatchSettings)
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    checkpointing: bool = False
    save: Save = Field(default_factory=Save)


class Budget(Block):
    """How long to train: exactly one of its keys is set."""

    epochs: float | None = Field(default=None, gt=0)
    records: Count | None = None
    tokens: Count | None = None
    updates: Count | None = None
    seconds: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _exactly_one(self) -> Budget:
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


class Evaluate(Block):
    """How results are scored, and what must not be forgotten (`retain`)."""

    metric: Annotated[Literal["auto"] | dict[str, Any], PlainValidator(_metric)] = "auto"
    retain: Annotated[dict[str, Any] | None, PlainValidator(_source_or_null)] = None
    limit: Count | None = None
    perplexity: bool = True


class Generate(Block):
    """How answers are generated. `batch` counts prompts generated together."""

    max_new_tokens: Count = 256
    temperature: float = Field(default=0.0, ge=0)
    batch: AutoCount = "auto"


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


class Compare(Block):
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


class Settings(Block):
    """A whole recipe, resolved."""

    name: str = Field(default="recipe", pattern=r"^[\w][\w.+-]*$")
    model: Model
    data: Data
    train: Train = Field(default_factory=Train)
    budget: Budget = Field(default_factory=lambda: Budget(epochs=2))
    evaluate: Evaluate = Field(default_factory=Evaluate)
    generate: Generate = Field(default_factory=Generate)
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
    for (block, key), _slot in PARTS.items():
        if isinstance(full.get(block), dict) and key in full[block]:
            full[block][key] = _expand_part((block, key), full[block][key])
    for block, key in SOURCES:
        if isinstance(full.get(block), dict) and isinstance(full[block].get(key), str):
            full[block][key] = _expand_source(full[block][key])
    return full


def copy(value: Any) -> Any:
    """A deep copy of plain blocks, lists and values."""
    if isinstance(value, Mapping):
        return {key: copy(item) for key, item in value.items()}
    return [copy(item) for item in value] if isinstance(value, list | tuple) else value


def _expand_part(path: Path, value: Any) -> Any:
    if isinstance(value, str):
        return value if path == ("evaluate", "metric") and value == "auto" else {"kind": value}
    if not isinstance(value, list) or path not in LISTS:
        return value
    items = [{"kind": item} if isinstance(item, str) else item for item in value]
    return [_expand_summand(item) for item in items] if path == ("train", "objective") else items


def _expand_summand(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    if "objective" not in item:
        coefficient = item.get("coefficient", 1.0)
        return {"objective": {k: v for k, v in item.items() if k != "coefficient"}, "coefficient": coefficient}
    objective = item["objective"]
    return {"coefficient": 1.0, **item, "objective": {"kind": objective} if isinstance(objective, str) else objective}


def _expand_source(text: str) -> Any:
    """A share stays; the name of a bundled data set or a part file is a kind; anything else is a path."""
    if text.endswith("%"):
        return text
    bundled = re.fullmatch(r"[a-z0-9_]+", text) and any(entry.name == text for entry in parts.catalogue("dataset"))
    return {"kind": text} if bundled or text.endswith(".py") else {"path": text}
