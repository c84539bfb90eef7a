"""Blocks of a recipe about what a model samples: answers, images of a denoiser, and the rollouts of an `rl` step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema, model_validator

from luthier.recipe import specs
from luthier.recipe.blocks import AUTO_SCHEMA, PARTS_SCHEMA, AutoCount, Block, Count, PartSpec, any_of, as_count
from luthier.types import Sampling


class GenerateSettings(Block):
    """How answers are generated."""

    max_new_tokens: Count = Field(
        default=256,
        description="Tokens of an answer at most. Raise it if answers are cut off; time grows with the longest ones.",
    )
    temperature: float = Field(
        default=0.0,
        ge=0,
        description="0 takes the likeliest token each time; above 0 tokens are drawn, and a higher temperature makes "
        "answers more varied. In `rl.generate` it is 1 unless written.",
    )
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Tokens are drawn from the likeliest ones that together have this share; 1 draws from all. Without "
        "effect at temperature 0.",
    )
    min_p: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Tokens are drawn from those with at least this share of the likeliest one's probability; 0 draws "
        "from all. Without effect at temperature 0.",
    )
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[], description="Texts that end an answer; the answer stops before the first of them."
    )
    batch: AutoCount = Field(
        default="auto",
        description="Prompts generated together. Lower it when memory runs out; auto leaves it to the sampler.",
    )
    sampler: PartSpec = Field(
        default={"kind": "native"},
        description="Who answers: `native` is the model at hand; in a `generate` step `http` asks a server for the "
        "answers of another model.",
    )

    def sampling(self) -> Sampling:
        """The settings that a sampler takes."""
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


CountOrZero = Annotated[int, BeforeValidator(as_count), Field(ge=0), WithJsonSchema({"type": "integer", "minimum": 0})]
AutoNumber = Annotated[
    Literal["auto"] | float,
    PlainValidator(_auto_or_number),
    any_of(AUTO_SCHEMA, {"type": "number", "exclusiveMinimum": 0}),
]


class Sample(Block):
    """How a denoiser's samples are drawn in an evaluation: by a solver, in some steps from noise to a sample."""

    solver: Literal["euler", "dpm2"] = Field(
        default="dpm2", description="The solver from noise to a sample: `dpm2` is of second order, `euler` of first."
    )
    steps: Count = Field(
        default=10,
        description="Calls of the model per sample. More make a sample better; each takes time.",
    )
    shift: AutoNumber = Field(
        default="auto",
        description="A number above 0. Above 1 more of the steps lie near the noise; auto takes what the model's "
        "scheduler says.",
    )


class Denoise(Block):
    """A rollout of a denoiser: samples of `groups` conditions, judged by `reward`, are trained on for some updates."""

    kind: Literal["denoise"] = Field(
        default="denoise", description="The kind of rollout; a recipe of a denoiser need not write it."
    )
    groups: Count = Field(
        default=8, description="Conditions (prompts) per rollout. More make an update less noisy and cost samples."
    )
    size: Count = Field(
        default=24,
        description="Samples under each condition, which are compared with one another. More judge a sample better and "
        "cost as many more draws.",
    )
    solver: Literal["euler", "dpm2"] = Field(
        default="dpm2", description="The solver that draws the samples: `dpm2` is of second order, `euler` of first."
    )
    steps: Count = Field(
        default=10,
        description="Calls of the model per sample. Fewer are faster; samples get worse.",
    )
    shift: AutoNumber = Field(
        default="auto",
        description="A number above 0. Above 1 more of the steps lie near the noise; auto is the shift of "
        "`evaluate.sample`.",
    )
    level_share: float = Field(
        default=0.99,
        gt=0,
        le=1,
        description="Each sample is trained on at this share of its solver's noise levels, at least one. Lower it to "
        "train faster on the same samples.",
    )
    updates: Count = Field(
        default=1,
        description="Updates that a rollout is cut into. More take more steps from the same samples, at the risk that "
        "the model has moved away from them.",
    )
    decay: Literal[0, 1, 2] = Field(
        default=1,
        description="How the parameters that draw samples follow the trained ones after a rollout: 0 at once; 1 ever "
        "slower, keeping up to half of themselves; 2 at once for 75 rollouts, then ever slower.",
    )
    adv_clip: float = Field(
        default=5.0,
        gt=0,
        description="Advantages, in standard deviations, are clipped here before they become probabilities of being "
        "optimal. Raising it makes the probabilities of ordinary samples more alike.",
    )
    adv_mode: Literal["all", "positive_only", "negative_only", "one_only", "binary"] = Field(
        default="all",
        description="Which advantages count: all, only one sign (the other is 0), positive ones as 1 (`one_only`), or "
        "their sign (`binary`).",
    )
    min_std: float | None = Field(
        default=None,
        ge=0,
        description="Groups are trained on if their rewards spread by more than this and their mean is below "
        "`max_mean`; null trains on all groups.",
    )
    max_mean: float = Field(
        default=0.9,
        description="Groups of a higher mean reward are not trained on; if they also spread by less than `min_std`, "
        "their condition is not drawn again. Read where `min_std` is set.",
    )
    forward: Count = Field(
        default=256, description="Samples per forward pass while they are drawn. Lower it when memory runs out."
    )


class RL(Block):
    """A rollout of a language model: sample answers, judge them, turn rewards into advantages, train on the rows."""

    kind: Literal["generate"] = Field(
        default="generate",
        description="The kind of rollout; a recipe of a language model need not write it.",
    )
    strategy: Annotated[dict[str, Any], PlainValidator(specs.strategy), WithJsonSchema(PARTS_SCHEMA)] = Field(
        default={"kind": "plain"},
        description="Which answers to a prompt are sampled: `{kind: plain, group: 8}` takes 8 from the prompt alone; "
        "`prefix` and `branch` go on from parts of the gold answer. More per group compare better and cost more.",
    )
    advantages: Annotated[list[dict[str, Any]], PlainValidator(specs.chain), WithJsonSchema(PARTS_SCHEMA)] = Field(
        default=[{"kind": "group_norm"}],
        description="How rewards become the credit of each token: one part or a list applied in order, such as "
        "`[kl_penalty, leave_one_out]`.",
    )
    generate: GenerateSettings = Field(
        default_factory=lambda: GenerateSettings(temperature=1.0),
        description="How the answers are sampled: keys as in `generate`, with temperature 1 unless written.",
    )
    updates: Count = Field(
        default=1,
        description="Updates that the rows of a rollout are cut into. More take more steps per sampled answer; the "
        "later ones learn from answers of an older model.",
    )
    passes: Count = Field(
        default=1, description="How often the rows of a rollout are gone through. 4 is usual for ppo; 1 is the safest."
    )
    refill: CountOrZero = Field(
        default=0,
        description="Further draws, at most, that replace prompts whose answers all got one reward (they teach "
        "nothing). Raise it where many prompts are always solved or never; each draw costs samples.",
    )
    train_cut_off: bool = Field(
        default=True,
        description="false masks answers that ran into `max_new_tokens`, so that the model is not punished for "
        "answers that would have become right.",
    )

    @model_validator(mode="before")
    @classmethod
    def _samples(cls, value: Any) -> Any:
        """Answers are drawn, so the temperature is 1 unless it is written."""
        if isinstance(value, Mapping) and isinstance(value.get("generate"), Mapping):
            return {**value, "generate": {"temperature": 1.0, **value["generate"]}}
        return value


ROLLOUTS: Mapping[str, type[RL] | type[Denoise]] = {"generate": RL, "denoise": Denoise}
"""The grammars of `rl`, by its `kind`: one for each modality that learns from its own samples."""


def rollout(value: Any) -> RL | Denoise | None:
    """The block of `rl` in the grammar of its `kind`, by default that of language models; None for null."""
    if value is None or isinstance(value, RL | Denoise):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("expected a block of keys, or null")
    kind = value.get("kind", "generate")
    if not isinstance(kind, str) or kind not in ROLLOUTS:
        raise ValueError(f"`kind` is one of {', '.join(ROLLOUTS)}")
    return ROLLOUTS[kind].model_validate(dict(value))
