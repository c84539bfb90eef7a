"""Blocks of a recipe about model, data and training; every key has its description, default and range.

`docs/reference/recipe.md`, `luthier keys`, the JSON schema and the hints of errors are written from these descriptions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from luthier.recipe import specs


class Block(BaseModel):
    """A frozen block of the recipe that refuses unknown keys and never converts text to numbers."""

    # `defer_build`: a command that validates no recipe does not wait for the validators.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


def as_count(value: Any) -> Any:
    """The int of a float without fraction: YAML reads `1e6` as a float. Other values stay as they are."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _auto_or_count(value: Any) -> Any:
    value = as_count(value)
    if value == "auto" or (type(value) is int and value > 0):
        return value
    raise ValueError("expected `auto` or a whole number above 0")


def _auto_count_or_null(value: Any) -> Any:
    return None if value is None else _auto_or_count(value)


AUTO_SCHEMA: dict[str, Any] = {"const": "auto"}
COUNT_SCHEMA: dict[str, Any] = {"type": "integer", "minimum": 1}
NULL_SCHEMA: dict[str, Any] = {"type": "null"}
PART_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "description": "the name of a part, or ./mine.py"},
        {"type": "object", "properties": {"kind": {"type": "string"}}, "description": "a part with its options"},
    ]
}
PARTS_SCHEMA: dict[str, Any] = {"anyOf": [*PART_SCHEMA["anyOf"], {"type": "array", "minItems": 1}]}
SOURCE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "description": "a file, a data set of the hub, or a generated data set"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "description": "several files"},
        {"title": "Source", "type": "object", "required": ["path"]},
        {"type": "object", "required": ["kind"], "description": "a generated data set with its options"},
    ]
}


def any_of(*schemas: Mapping[str, Any]) -> WithJsonSchema:
    """The JSON schema of a key with a validator written by hand: pydantic cannot derive it."""
    return WithJsonSchema({"anyOf": [dict(schema) for schema in schemas]})


Count = Annotated[int, BeforeValidator(as_count), Field(gt=0), WithJsonSchema(COUNT_SCHEMA)]
AutoCount = Annotated[Literal["auto"] | int, PlainValidator(_auto_or_count), any_of(AUTO_SCHEMA, COUNT_SCHEMA)]
AutoCountOrNull = Annotated[
    Literal["auto"] | int | None, PlainValidator(_auto_count_or_null), any_of(AUTO_SCHEMA, COUNT_SCHEMA, NULL_SCHEMA)
]


def _column_names(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(name, str) for name in value)):
        return value
    raise ValueError("expected the name of a column, or a list of names")


ColumnNames = Annotated[
    str | list[str],
    PlainValidator(_column_names),
    any_of({"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}),
]


class Source(Block):
    """Records in a file or a data set of the hub."""

    path: str | list[str] = Field(
        description="A file (.jsonl, .json, .csv, .tsv, .parquet, .arrow, also in .gz; arrays: .safetensors, .npz), a "
        "folder of them, a pattern such as `part-*.jsonl`, a list of these, or the id of a hub data set."
    )
    columns: dict[str, ColumnNames] = Field(
        default={},
        description="Names of the columns, `ours: theirs`, such as `{prompt: question, completion: answer}`; a list "
        "joins several: `{prompt: [instruction, input]}`. `role` and `content` rename keys inside messages.",
    )
    limit: Count | None = Field(
        default=None,
        description="The greatest number of records. They are chosen by content: a larger limit keeps those of a "
        "smaller one. null uses all.",
    )
    split: str | None = Field(
        default=None, description="The split of a hub data set or of a folder of files, such as `train`."
    )
    config: str | None = Field(
        default=None, description="The configuration of a hub data set that has several, such as `main`."
    )


def _source(value: Any) -> Any:
    if isinstance(value, Mapping) and "kind" in value:
        return specs.part(value)
    return Source.model_validate(value).model_dump()


def source_or_null(value: Any) -> Any:
    """A source of records, or none."""
    return None if value is None else _source(value)


def _split(value: Any) -> Any:
    """A share of the training records, a number of them, records of its own, or none."""
    if isinstance(value, str):
        share = float(value[:-1]) if re.fullmatch(r"\d+(\.\d+)?%", value) else 0.0
        if not 0 < share < 100:
            raise ValueError("expected a share between 0% and 100%")
        return value
    value = as_count(value)
    if value is None or (type(value) is int and value > 0):
        return value
    if isinstance(value, Mapping):
        return _source(value)
    raise ValueError("expected a share such as `10%`, a number of records, a source or null")


PartSpec = Annotated[dict[str, Any], PlainValidator(specs.part), WithJsonSchema(PART_SCHEMA)]
SourceSpec = Annotated[dict[str, Any], PlainValidator(_source), WithJsonSchema(SOURCE_SCHEMA)]
SplitSpec = Annotated[
    str | int | dict[str, Any] | None,
    PlainValidator(_split),
    any_of(SOURCE_SCHEMA, COUNT_SCHEMA, NULL_SCHEMA),
]


class Model(Block):
    """Which model: a hub id, a folder or a bundled name; or a `config`, for a model with random weights."""

    path: str = Field(
        description="A bundled name (`nano`, `nano-digits`, `smollm2-135m-instruct`), a folder as transformers, PEFT "
        "or diffusers saves models, or a hub id. `model: NAME` is short for it."
    )
    config: dict[str, Any] | None = Field(
        default=None,
        description="What the model's library (diffusers or transformers) writes into config.json, in place of `path`: "
        "the model is made with random weights. For diffusion models and encoders.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,
        description="The random weights of a model made from `config` are drawn from it. It is not the run's seed, so "
        "that all runs start from one model.",
    )
    revision: str | None = Field(
        default=None, description="The branch, tag or commit of a hub model; null takes the newest."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        default="auto",
        description="The type of the weights when the model is loaded for an evaluation; auto takes bfloat16 where the "
        "device computes fast in it, else float32. In a training `train.precision` comes first.",
    )
    attention: Literal["auto", "sdpa", "eager"] = Field(
        default="auto",
        description="The attention of transformers; auto lets the library choose and, on processors, computes short "
        "rows as products of whole matrices. `eager` is transformers' plain reference.",
    )
    remote_code: bool = Field(
        default=False, description="true runs Python code that comes with the model. Set it only for code you trust."
    )

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


class Data(Block):
    """The records, how they are split, rendered and cut."""

    train: SourceSpec = Field(
        description="The records to train on: a file, a hub data set (`{path, columns, limit, split, config}`), or a "
        "generated data set such as `{kind: strings, count: 500}`."
    )
    validation: SplitSpec = Field(
        default="10%",
        description="Records for choosing values (`compare.tune`): a share of the training source, a number of its "
        "records, a source of its own, or null for none. A larger share leaves fewer records to train on.",
    )
    test: SplitSpec = Field(
        default="15%",
        description="Records that only the evaluation sees, in the same forms as `data.validation`. A comparison "
        "needs them; more of them narrow its intervals.",
    )
    split_seed: int = Field(
        default=0,
        description="Any whole number. Another one divides the records otherwise; near-duplicates always stay on one "
        "side. Keep it while results are compared.",
    )
    render: str = Field(
        default="chat",
        description="How a record becomes text: `chat` is the model's own chat template; else a format such as "
        "`{prompt}\\n{completion}`, for models without a template.",
    )
    targets: Literal["auto", "assistant", "completion", "all"] = Field(
        default="auto",
        description="Which tokens are learned: `assistant` every answer of a conversation, `completion` the last "
        "answer, `all` every token; auto goes by the record's shape.",
    )
    max_tokens: Count = Field(
        default=1024,
        description="Tokens of a record at most, prompt and answer together. Raising it keeps longer records and takes "
        "more memory; it cannot exceed the model's context.",
    )
    too_long: Literal["drop", "truncate", "error"] = Field(
        default="drop",
        description="What happens to a record of more than `data.max_tokens`: it is left out and counted (`drop`), cut "
        "at the end (`truncate`), or ends the run (`error`).",
    )
    deduplicate: bool = Field(
        default=True,
        description="true keeps one of several identical records. Set false where repetition is meant as a weight.",
    )
    identity: list[str] = Field(
        default_factory=list,
        description="Further columns in which records differ that are no copies of each other, besides those that the "
        "recipe's parts and `data.render` read. A comparison adds what only some of its methods read.",
    )
    group_by: str | None = Field(
        default=None,
        description="A column that names what records were cut from, such as a document, a conversation or an author: "
        "records of one value stay on one side of a split. null goes by the texts alone.",
    )


class BatchSettings(Block):
    """Records per update and how they are cut into forward passes."""

    records: Count = Field(
        default=16,
        description="Records per update, whatever fits into memory at once: in an `rl` step, prompts per rollout. "
        "Raising it makes steps less noisy and fewer per epoch.",
    )
    order: Literal["shuffled", "written"] = Field(
        default="shuffled",
        description="`written` takes the records as the data set has them, epoch after epoch (a curriculum); "
        "`shuffled` draws an order from the seed.",
    )
    micro: AutoCount = Field(
        default="auto",
        description="Tokens (without tokens: records) per forward pass. It changes speed and memory, never the result; "
        "lower it when memory runs out. auto: 512 on a processor (256 from 50M parameters on), 16,384 on a GPU.",
    )
    layout: Literal["auto", "packed", "padded", "shared"] = Field(
        default="auto",
        description="The layout of rows in a forward pass: `padded` to one length, `packed` one behind the other, "
        "`shared` with a prompt read once for all its answers; auto shares where model and parts allow, else pads.",
    )


class Save(Block):
    """Checkpoints of a training."""

    every: AutoCountOrNull = Field(
        default="auto",
        description="Updates between two checkpoints; auto saves every 5 minutes, null only at the end. Lower it to "
        "lose less when a run is stopped.",
    )
    keep: Count = Field(
        default=2, description="The number of newest checkpoints that stay on disk; older ones are removed."
    )


class TrainSettings(Block):
    """What is minimised, what is trained, on which of the records drawn, and how."""

    objective: Annotated[
        dict[str, Any] | list[dict[str, Any]], PlainValidator(specs.objective), WithJsonSchema(PARTS_SCHEMA)
    ] = Field(
        default={"kind": "sft"},
        description="The loss: a name that `luthier methods` lists, ./mine.py, or a list of several with a "
        "`coefficient` each, which are added.",
    )
    tuner: Annotated[
        dict[str, Any] | list[dict[str, Any]], PlainValidator(specs.tuner), WithJsonSchema(PARTS_SCHEMA)
    ] = Field(
        default={"kind": "lora"},
        description="Which parameters are trained: `lora` adapters, `full` (all, which takes far more memory), another "
        "tuner, or a list applied in order.",
    )
    select: Annotated[
        dict[str, Any] | None, PlainValidator(specs.part_or_null), any_of(*PART_SCHEMA["anyOf"], NULL_SCHEMA)
    ] = Field(
        default=None,
        description="A selector that trains on a part of the records drawn for each update, such as "
        "`{kind: uds, keep: 0.5}`; null trains on all.",
    )
    optimizer: PartSpec = Field(
        default={"kind": "adamw"},
        description="The optimiser with its learning rate, `{kind: adamw, lr: 2e-4}`. 2e-4 suits LoRA; full "
        "fine-tuning wants about a tenth of it.",
    )
    schedule: PartSpec = Field(
        default={"kind": "cosine"},
        description="How the learning rate changes over the budget, with its warm-up: `cosine`, `linear`, `constant`.",
    )
    batch: BatchSettings = Field(
        default_factory=BatchSettings, description="Records per update and how they are cut into forward passes."
    )
    precision: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        default="auto",
        description="The type in which the model computes while it is trained; auto takes `model.dtype`, else bfloat16 "
        "where the device is fast in it. Take float32 if a loss becomes NaN. The trained values stay float32.",
    )
    checkpointing: bool = Field(
        default=False,
        description="true computes activations again in the backward pass instead of keeping them: less memory, "
        "more time. The result is the same. For language models.",
    )
    save: Save = Field(default_factory=Save, description="When checkpoints are written and how many stay.")
