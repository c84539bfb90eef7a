"""Train: the training of the recipe, on records."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from luthier.errors import RecipeError
from luthier.parts import lazy
from luthier.recipe.steps import BASE, DATA, NEWEST
from luthier.steps.verbs.base import Blocks, Data, From, Share, Status, Verb

if TYPE_CHECKING:
    from luthier.recipe import Stage
    from luthier.steps.work import Work

_training = lazy("luthier.steps.verbs._training")
verify = lazy("luthier.steps.verify")


def _probe(block: Any) -> Any:
    every = block.get("every") if isinstance(block, Mapping) and set(block) == {"every"} else None
    if block is None or every == "auto" or (type(every) is int and every > 0):
        return block
    raise ValueError(f"expected `every: auto` or every so many updates, found {block!r}")


class Train(Verb):
    """Trains on records."""

    LEAVES: ClassVar = ("model",)
    COLUMNS: ClassVar = ("trajectory",)
    TRAINS: ClassVar = True
    OVERLAYS: ClassVar = ("model", "train")

    from_: From = NEWEST
    data: Data = DATA
    share: Share = None
    model: Annotated[
        Any,
        Field(
            description="A proxy: another model that is trained on `data` with its own tokenizer, for its probe alone;"
            " `newest` stays the same."
        ),
    ] = None
    train: Blocks = None
    probe: Annotated[
        dict[str, int | Literal["auto"]] | None,
        BeforeValidator(_probe),
        Field(
            description="`{every: k}` computes the losses of all rows before the first update and after every k-th"
            " update (`auto`: about ten times), for the column `trajectory`."
        ),
    ] = None

    @model_validator(mode="after")
    def _starts_from_itself(self) -> Train:
        if "model" in self.model_fields_set and (self.from_ not in (BASE, NEWEST) or self.data != DATA):
            raise ValueError("a `model` of its own starts from itself, on `data`: leave out from and data")
        return self

    @property
    def is_proxy(self) -> bool:
        """Whether the step trains a model of its own instead of the recipe's."""
        return "model" in self.model_fields_set

    @property
    def leaves(self) -> tuple[Literal["model", "records"], ...]:
        return () if self.is_proxy else ("model",)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.COLUMNS if self.probe else ()

    def adapt(self, recipe: dict[str, Any]) -> None:
        """Drop the rollouts, and for a proxy the recipe's `model`, whose keys are of another model."""
        recipe["rl"] = None
        if self.is_proxy:
            recipe["model"] = {}

    def check(self, stage: Stage, columns: Collection[str]) -> None:
        super().check(stage, columns)
        members = verify.fitting_objectives(stage)
        streams = [name for names in verify.SAMPLED.values() for name in names]
        for member in members:
            if sampled := [read for read in streams if read in member.reads]:
                raise RecipeError(
                    f"`{member.kind}` learns from `{sampled[0]}` of answers that the model samples itself, and the step"
                    f" `{stage.name}` trains on records.",
                    "Add `rl: {}` to the recipe (in a pipeline, `do: rl`), and define right answers by `reward:`.",
                )
        verify.refuse_misfits(stage, members)

    @classmethod
    def without(cls, column: str) -> tuple[str, str]:
        return (
            "the losses over a training, and no earlier step has a probe",
            "Put a step before it, such as `proxy: {do: train, probe: {every: auto}}`.",
        )

    def run(self, work: Work, stage: Stage, folder: Path) -> Status:
        """Train from the newest checkpoint."""
        if self.is_proxy:
            return _training.train_proxy(work, stage, folder, self.probe)
        return _training.train(work, stage, folder, self.probe)
