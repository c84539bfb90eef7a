"""The family of samplers: the model that writes the answers of a step, and where it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from luthier.errors import RecipeError
from luthier.parts import Part
from luthier.types import Sampler


@dataclass(frozen=True)
class Asking:
    """What a step passes to a sampler.

    Attributes:
        module: the step's model.
        tokenizer: turns answers into tokens.
        end_ids: tokens that end an answer.
        end: the end token of a training row, one of `end_ids`; None where rows have none.
        rows: prompts answered together; None lets the sampler choose.
        folder: where the sampler may store replies. A resumed step and the other runs of a comparison read them.
    """

    module: Any
    tokenizer: Any
    end_ids: set[int]
    end: int | None = None
    rows: int | None = None
    folder: Path | None = None


class SamplerPart(Part):
    """Makes a `Sampler` (types.py). Verb: `make`; hook: `reach`, for answers of a server.

    OWN says that the step's own model answers, which reinforcement learning and evaluation need.
    """

    SLOT: ClassVar[str] = "sampler"
    OWN: ClassVar[bool] = False

    def make(self, asking: Asking) -> Sampler:
        """A sampler. The metadata of each request hold the conversation to answer as `messages`."""
        raise RecipeError(f"{type(self).__name__} does not define `make(self, asking)`.")

    def reach(self) -> None:
        """Called before a run starts any work.

        Raises:
            RunError: no request could be answered now.
        """
