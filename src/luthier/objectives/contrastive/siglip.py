"""SigLIP: a binary classification of every pair of an image and a text of the update."""

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

    L = -1/B Σ_i Σ_j log σ(s_ij (exp(t) ⟨x_i, y_j⟩ + b)), with s_ij = +1 for matching i and j and -1
    elsewhere; t and b are trained parameters of the encoder (`scale`, `bias`), starting at log 10 and -10.
    `same` names a row stream: rows of equal value match too (a caption that occurs more than once would
    otherwise be pushed away from its own images). B counts the whole update, over micro-batches and ranks.
    Meter: `text_found`, the share of images whose nearest text matches.

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
        outputs = policy.outputs(batch, ("image", "text", "scale", "bias"))
        return outputs | {name: functional.normalize(outputs[name], dim=-1) for name in ("image", "text")}

    def coupled_loss(self, features: dict[str, Tensor], streams: dict[str, Tensor], update: Update) -> list[Term]:
        similarity = features["image"] @ features["text"].T
        # `features` repeats the two scalar parameters once per record; the mean gives each record 1/B of the gradient.
        logits = features["scale"].mean().exp() * similarity + features["bias"].mean()
        matches = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        if self.same is not None:
            matches |= streams[self.same][:, None] == streams[self.same][None, :]
        signs = torch.where(matches, 1.0, -1.0).to(logits.dtype)
        nearest = logits.detach().argmax(1, keepdim=True)
        update.meter("text_found", matches.gather(1, nearest).double().sum(), self.unit)
        return [Term(-functional.logsigmoid(signs * logits).sum(), self.unit)]
