"""The family of verbs: a step of a pipeline does one (`do:`)."""

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
    Field(alias="from", description="The model: `base` (the recipe's), `newest`, or an earlier step that left one."),
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
        " loop the round's share, and the default there), or an earlier step that left some."
    ),
]


def _share(share: Any) -> Any:
    if share is not None and (type(share) not in (int, float) or not 0 < share <= 1):
        raise ValueError(f"expected a number above 0 and at most 1, found {share!r}")
    return share


Share = Annotated[
    float | None,
    BeforeValidator(_share),
    Field(description="Share of the budget, above 0 and at most 1; steps without a share divide the rest."),
]
Blocks = Annotated[Any, Field(description="Keys of the recipe's block of this name, laid over it for this step alone.")]


class Verb(Part):
    """One thing that a step can do. Define `run`; the options are the keys of the step.

    LEAVES: what later steps find under the step's name, "model" or "records".
    COLUMNS: numbers per row that the step may leave for a later `select` step.
    TRAINS: the step trains, takes a `share` of the budget, and ends between two updates if the run is asked to stop.
    OVERLAYS: keys that are blocks of the recipe.

    An option with `StepReference("model")` or `StepReference("records")` names a model or records of earlier steps. A
    verb with the option `steps` has a body (`loop`).
    """

    model_config = ConfigDict(strict=True)
    SLOT: ClassVar[str] = "verb"
    LEAVES: ClassVar[tuple[Literal["model", "records"], ...]] = ()
    COLUMNS: ClassVar[tuple[str, ...]] = ()
    TRAINS: ClassVar[bool] = False
    OVERLAYS: ClassVar[tuple[str, ...]] = ()

    def run(self, work: Work, stage: Stage, folder: Path) -> Status | None:
        """Carry out the step.

        A resumed run calls this again for steps that had ended: the verb then reads back the files that it wrote into
        `folder`, or does the same work again, bit for bit.

        Args:
            work: models, records and columns by the name of the step that left them.
            stage: the step's name, its recipe with its own blocks laid over it, and its body.
            folder: of the step; it exists, unless the verb TRAINS or has a body.

        Returns:
            "stopped" if the run was asked to end; None means "done".
        """
        raise RecipeError(f"{type(self).__name__} does not define `run(self, work, stage, folder)`.")

    @property
    def leaves(self) -> tuple[Literal["model", "records"], ...]:
        """What this step leaves: LEAVES, or less by its keys."""
        return self.LEAVES

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that this step leaves: COLUMNS, or fewer by its keys."""
        return self.COLUMNS

    @property
    def repeats(self) -> int:
        """How often the body is carried out; the shares of its steps are divided by this number."""
        return 1

    def overlays(self) -> dict[str, Any]:
        """The blocks of the recipe that are written in the step."""
        return {key: getattr(self, key) for key in self.OVERLAYS if key in self.model_fields_set}

    def adapt(self, recipe: dict[str, Any]) -> None:
        """Hook: change the whole recipe, as plain blocks, before the step's own are laid over it."""

    def named_parts(self) -> Iterable[tuple[str, str, Any]]:
        """Hook: (key, slot, description) of each part that a key names; it is built when the recipe is read."""
        return ()

    def check_body(self, body: Mapping[str, Verb]) -> None:
        """Hook of verbs with a body: raise ValueError, with the reason, for steps that cannot be its body."""

    def check(self, stage: Stage, columns: Collection[str]) -> None:
        """Raise RecipeError before a model is loaded if the step cannot be carried out. Overrides call this one too.

        Args:
            columns: names of the columns that earlier steps leave.
        """
        verify.refuse_others(stage.recipe.settings.generate, stage.recipe.base)

    @classmethod
    def without(cls, column: str) -> tuple[str, str]:
        """Why `column`, one of COLUMNS, is missing (the end of a sentence), and a hint: the step to write."""
        return (
            f"and no earlier `{cls.__name__.lower()}` step leaves that column",
            f"Put a `{cls.__name__.lower()}` step before it.",
        )

    def server(self, stage: Stage) -> str | None:
        """The address of the server whose model answers in this step; None if there is none."""
        return None

    def reach(self, stage: Stage, folder: Path | None = None) -> None:
        """Hook: raise RunError if a server that the step needs cannot be reached.

        Args:
            folder: of the run, where finished work may make the server needless.
        """
