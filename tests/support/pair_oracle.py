"""Pairs given by their summed log-probabilities, as the card states them."""

import torch

from luthier.objectives.preference.base import PairView
from luthier.objectives.views import SequenceView
from luthier.update import Update


def side(logprob, count, reference, update):
    return SequenceView(
        logprob=torch.tensor([logprob], dtype=torch.float64, requires_grad=True),
        count=torch.tensor([float(count)], dtype=torch.float64),
        streams={},
        reference_logprob={"initial": torch.tensor([reference], dtype=torch.float64)},
        update=update,
    )


def card_pair(chosen=-10.0, rejected=-12.0, reference=(-11.0, -11.0), counts=(5, 4), update=None):
    update = update or Update(1, 0)
    return PairView(
        side(chosen, counts[0], reference[0], update),
        side(rejected, counts[1], reference[1], update),
    )


def loss_and_gradients(objective, **more):
    """The loss of a pair, and its gradients with respect to the chosen and the rejected log-probability."""
    view = card_pair(**more)
    loss = objective.pair_loss(view).sum()
    gradients = torch.autograd.grad(loss, (view.chosen.logprob, view.rejected.logprob))
    return float(loss.detach()), tuple(float(gradient) for gradient in gradients)
