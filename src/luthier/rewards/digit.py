"""Whether an image shows the digit that its condition names."""

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
    """The probability that an image `[1,8,8]` shows its condition `label`, by a small classifier of drawn digits.

    The classifier is trained at its first use, which takes about a second. Another `seed` gives another classifier.
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
        """Probabilities `[R]`, each in [0,1], of samples `[R,1,8,8]`.

        Raises:
            RecipeError: samples of another shape, or no condition `label`.
        """
        if tuple(samples.shape[1:]) != (1, 8, 8) or "label" not in condition:
            shape = list(samples.shape[1:])
            raise RecipeError(
                f"The reward `digit` judges images of shape [1, 8, 8] with a condition `label`; found {shape} with"
                f" {', '.join(condition) or 'no condition'}.",
                "Use the data set `digits`, or write a reward of your own: `reward: ./mine.py`.",
            )
        return _digits.probability(self.seed, samples, condition["label"])
