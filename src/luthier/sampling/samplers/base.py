"""The family of samplers: who writes the answers of a step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from luthier.errors import RecipeError
from luthier.parts import Part
from luthier.types import Sampler


@dataclass(frozen=True)
class Asking:
    """What a step knows of the answers that it wants.

    Attributes:
        module: the step's model.
        tokenizer: that answers are tokenised with.
        end_ids: tokens that end an answer.
        end: the one of them that a training row ends with; None where there is none.
        rows: prompts answered together; None leaves it to the sampler.
        folder: where replies may be kept, for a step that is resumed and for the other runs of a comparison.
    """

    module: Any
    tokenizer: Any
    end_ids: set[int]
    end: int | None = None
    rows: int | None = None
    folder: Path | None = None


class SamplerPart(Part):
    """Makes a `Sampler` (types.py). Verb: `make`; `reach` where answers come from elsewhere.

    OWN says that the step's model itself answers, as reinforcement learning and evaluation need it.
    """

    SLOT: ClassVar[str] = "sampler"
    OWN: ClassVar[bool] = False

    def make(self, asking: Asking) -> Sampler:
        """A sampler of requests, whose metadata hold the conversation to answer as `messages`."""
        raise RecipeError(f"{type(self).__name__} does not define `make(self, asking)`.")

    def reach(self) -> None:
        """Called before anything starts; raises RunError if nothing could be answered now."""
