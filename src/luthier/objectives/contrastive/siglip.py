"""SigLIP: every image with every text, each pair a yes-or-no question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.objectives.base import CoupledObjective
from luthier.parts import lazy
from luthier.types import Batch, Term
from luthier.update import Update

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import functional
else:
    torch = lazy("torch")
    functional = lazy("torch.nn.functional")


class SigLIP(CoupledObjective):
    """Sigmoid loss over all pairs of images x_i and texts y_j of an update, both of unit length.

    L = -1/B Σ_i Σ_j log σ(s_ij (exp(t) ⟨x_i, y_j⟩ + b)), with s_ij = +1 where i and j belong together and -1
    elsewhere; t and b are learned, parameters of the encoder (`scale`, `bias`), starting at log 10 and -10.
    `same` names a row stream: rows of equal value belong together too (captions that occur more than once would
    otherwise be pushed away from their own images). B is the whole update's, over micro-batches and ranks.

    Source: arXiv 2303.15343, algorithm 1.
    """

    PAPER: ClassVar[str] = "arXiv 2303.15343"
    MODALITY: ClassVar[str] = "contrastive"
    COUPLES: ClassVar[bool] = True
    SETTINGS: ClassVar = ({}, {"same": "label"})

    same: str | None = Field(
        None,
        description="Row stream, such as `label`, whose equal values also belong together, so that a repeated caption "
        "is not pushed from its images. Null: image i with text i alone.",
    )

    def features(self, policy: Any, batch: Batch) -> dict[str, Tensor]:
        found = policy.outputs(batch, ("image", "text", "scale", "bias"))
        return found | {name: functional.normalize(found[name], dim=-1) for name in ("image", "text")}

    def coupled_loss(self, features: dict[str, Tensor], streams: dict[str, Tensor], update: Update) -> list[Term]:
        similarity = features["image"] @ features["text"].T
        # One value per record of what is one parameter: the mean hands each record its share of the gradient.
        logits = features["scale"].mean().exp() * similarity + features["bias"].mean()
        together = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        if self.same is not None:
            together |= streams[self.same][:, None] == streams[self.same][None, :]
        signs = torch.where(together, 1.0, -1.0).to(logits.dtype)
        nearest = logits.detach().argmax(1, keepdim=True)
        update.meter("text_found", together.gather(1, nearest).double().sum(), self.unit)
        return [Term(-functional.logsigmoid(signs * logits).sum(), self.unit)]
