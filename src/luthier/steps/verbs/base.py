"""The family of verbs: what a step of a pipeline does (`do:`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from luthier.errors import RecipeError
from luthier.parts import Part, lazy
from luthier.recipe.steps import StepReference as StepReference

if TYPE_CHECKING:
    from luthier.recipe import Stage
    from luthier.steps.work import Work

verify = lazy("luthier.steps.verify")

Status = Literal["done", "stopped"]

From = Annotated[
    str,
    StepReference("model"),
    Field(alias="from", description="The model: `base` (the recipe's), `newest`, or what an earlier step left."),
]


def _named(names: str | list[str]) -> str | list[str]:
    if not names:
        raise ValueError("the list is empty: name at least one")
    return names


Data = Annotated[
    str | list[str],
    StepReference("records"),
    AfterValidator(_named),
    Field(
        description="The records, one name or a list: `data` (the recipe's, with their gold answers), `chunk` (in a"
        " loop the round's share, and the default there), or what an earlier step left."
    ),
]


def _share(share: Any) -> Any:
    if share is not None and (type(share) not in (int, float) or not 0 < share <= 1):
        raise ValueError(f"expected a number above 0 and at most 1, found {share!r}")
    return share


Share = Annotated[
    float | None,
    BeforeValidator(_share),
    Field(description="Share of the budget, above 0 and at most 1; steps without one divide what is left."),
]
Blocks = Annotated[Any, Field(description="Keys of the recipe's block of this name, laid over it for this step alone.")]


class Verb(Part):
    """What a step does. Verb: `run`; its options are the keys of the step.

    LEAVES: what later steps find under the step's name, "model" or "records".
    COLUMNS: numbers per row that it may leave for a `select` step behind it.
    TRAINS: it trains, takes a `share` of the budget, and ends between two updates when the run is asked to stop.
    OVERLAYS: keys that are blocks of the recipe.

    An option with `StepReference("model")` or `StepReference("records")` names what earlier steps left. A verb with the
    option `steps` has a body (`loop`).
    """

    model_config = ConfigDict(strict=True)
    SLOT: ClassVar[str] = "verb"
    LEAVES: ClassVar[tuple[Literal["model", "records"], ...]] = ()
    COLUMNS: ClassVar[tuple[str, ...]] = ()
    TRAINS: ClassVar[bool] = False
    OVERLAYS: ClassVar[tuple[str, ...]] = ()

    def run(self, work: Work, stage: Stage, folder: Path) -> Status | None:
        """Carry the step out.

        A run that goes on after a stop calls it again for steps that had ended: it reads back what it wrote into
        `folder`, or does the same work once more, bit for bit.

        Args:
            work: models, records and columns by the name of the step that left them.
            stage: the step's name, its recipe with its own blocks laid over it, and its place.
            folder: of the step; it exists, unless the verb TRAINS or has a body.

        Returns:
            "stopped" where the run was asked to end; None stands for "done".
        """
        raise RecipeError(f"{type(self).__name__} does not define `run(self, work, stage, folder)`.")

    @property
    def leaves(self) -> tuple[Literal["model", "records"], ...]:
        """LEAVES, unless the step's keys say otherwise."""
        return self.LEAVES

    @property
    def columns(self) -> tuple[str, ...]:
        """COLUMNS, unless the step's keys say otherwise."""
        return self.COLUMNS

    @property
    def repeats(self) -> int:
        """How often a body is carried out: its steps divide the budget by this number."""
        return 1

    def overlays(self) -> dict[str, Any]:
        """The blocks of the recipe that the step wrote."""
        return {key: getattr(self, key) for key in self.OVERLAYS if key in self.model_fields_set}

    def adapt(self, recipe: dict[str, Any]) -> None:
        """Hook: change the whole recipe, as plain blocks, before the step's own are laid over it."""

    def named_parts(self) -> Iterable[tuple[str, str, Any]]:
        """Hook: (key, slot, description) of the parts that keys name; each is built when the recipe is read."""
        return ()

    def check_body(self, body: Mapping[str, Verb]) -> None:
        """Hook of verbs with a body: raise ValueError, in words, for steps that cannot be its body."""

    def check(self, stage: Stage, columns: Collection[str]) -> None:
        """Raise RecipeError for what the step cannot do, before a model is loaded. Overriding it, call this one too.

        Args:
            columns: what steps before it leave.
        """
        verify.refuse_others(stage.recipe.settings.generate, stage.recipe.base)

    @classmethod
    def without(cls, column: str) -> tuple[str, str]:
        """Why a column is missing, and the step to write: the end of a sentence, and a hint."""
        return (
            f"and no `{cls.__name__.lower()}` step before it leaves that",
            f"Put a `{cls.__name__.lower()}` step before it.",
        )

    def server(self, stage: Stage) -> str | None:
        """The address of another model that answers in this step."""
        return None

    def reach(self, stage: Stage, folder: Path | None = None) -> None:
        """Hook: raise RunError if whom the step needs elsewhere cannot be reached; `folder` is that of the run."""
