"""One position of the dft-asft card: logits, target, reference."""

import torch

from luthier.objectives.views import TokenView
from luthier.update import Update


class FixedReference:
    def logits(self, hidden):
        return hidden


def view_of(objective, logits=(2.0, 1.0, 0.0, -1.0), reference=(1.0, 1.0, 0.5, 0.0), update=None):
    z = torch.tensor([logits], dtype=torch.float64, requires_grad=True)
    fixed = torch.tensor([reference], dtype=torch.float64)
    return TokenView(
        logits=z,
        targets=torch.tensor([1]),
        streams={"weights": torch.ones(1, dtype=torch.float64)},
        hidden_of={"initial": (FixedReference(), fixed)},
        keys=torch.tensor([123]),
        record_targets=torch.tensor([1]),
        update=update or Update(1, 0),
    )


def gradient_of(objective, **more):
    view = view_of(objective, **more)
    loss = objective.weighted(view).sum()
    (gradient,) = torch.autograd.grad(loss, view.logits)
    return float(loss.detach()), gradient[0]
