"""Full: every parameter is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.parts import lazy
from luthier.tuners.base import Tuner

if TYPE_CHECKING:
    from torch import Tensor, nn

    from luthier.tuners import _tunable
else:
    _tunable = lazy("luthier.tuners._tunable")


class Full(Tuner):
    """Full fine-tuning: all parameters are trained, embeddings included; the result is a complete model folder."""

    DISABLING_RESTORES_BASE: ClassVar[bool] = False

    def ready(self, model: nn.Module) -> list[str]:
        _tunable.refuse_quantised(model, "full")
        return []

    def apply(self, model: nn.Module, plan: dict[str, Any]) -> nn.Module:
        return model.requires_grad_(True)

    def save(self, model: nn.Module, masters: dict[str, Tensor], folder: Path) -> None:
        """Write a folder for `from_pretrained`, in the dtype that the model computes in."""
        model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
