"""Whether a picture shows the digit that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.errors import RecipeError
from luthier.parts import lazy
from luthier.rewards.base import Reward

if TYPE_CHECKING:
    from torch import Tensor

_digits: Any = lazy("luthier.rewards._digits")


class Digit(Reward):
    """The probability, by a small classifier of drawn digits, that a picture [1,8,8] shows its condition `label`.

    The classifier is trained when it is first asked, in a second; another `seed`, another judge.
    """

    MODALITY: ClassVar[str] = "diffusion"
    SETTINGS: ClassVar = ({}, {"seed": 1})

    seed: int = Field(
        0,
        ge=0,
        description="Seed of the classifier's weights and training noise. Another seed is another judge, trained on "
        "the same digits.",
    )

    def score_samples(self, samples: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Values in [0,1]."""
        if tuple(samples.shape[1:]) != (1, 8, 8) or "label" not in condition:
            shape = list(samples.shape[1:])
            raise RecipeError(
                f"The reward `digit` judges pictures of shape [1, 8, 8] under a `label`; found {shape} under"
                f" {', '.join(condition) or 'no condition'}.",
                "Draw the data with `digits`, or write a reward of your own: `reward: ./mine.py`.",
            )
        return _digits.probability(self.seed, samples, condition["label"])
