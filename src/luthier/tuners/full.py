"""Full: every parameter is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.errors import RecipeError
from luthier.parts import lazy
from luthier.tuners.base import Tuner

if TYPE_CHECKING:
    from torch import Tensor, nn

    from luthier.models.loading import saving
    from luthier.tuners import _tunable
else:
    saving = lazy("luthier.models.loading.saving")
    _tunable = lazy("luthier.tuners._tunable")


class Full(Tuner):
    """Full fine-tuning: all parameters are trained, embeddings included; the result is a complete model folder."""

    DISABLING_RESTORES_BASE: ClassVar[bool] = False

    def ready(self, model: nn.Module) -> list[str]:
        _tunable.refuse_quantised(model, "full")
        row = saving.emptied_row(model)
        if row is not None:
            raise RecipeError(
                f"tuner `full` would train row {row} of the tied embeddings of {type(model).__name__}, which"
                " transformers sets to zero whenever it loads the model.",
                "A tuner that leaves the embeddings alone, such as `lora`, trains it.",
            )
        return []

    def apply(self, model: nn.Module, plan: dict[str, Any]) -> nn.Module:
        return model.requires_grad_(True)

    def save(self, model: nn.Module, masters: dict[str, Tensor], folder: Path) -> None:
        """Write a folder for `from_pretrained`, in the dtype that the model computes in."""
        model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
