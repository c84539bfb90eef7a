"""Vectors that the authors' own code computed, and views that hold log-probabilities as they are given."""

import json
from pathlib import Path

import torch

from luthier.objectives.base import TokenView, Update

FOLDER = Path(__file__).parent


def golden(name):
    """The content of `<name>.json` beside this file."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def tensor(values, requires_grad=False):
    """Float64, as the vectors are."""
    return torch.tensor(values, dtype=torch.float64, requires_grad=requires_grad)


def difference(ours, theirs):
    """Largest difference, relative to the largest of their numbers."""
    theirs = torch.as_tensor(theirs, dtype=torch.float64)
    ours = torch.as_tensor(ours, dtype=torch.float64).detach()
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-300))


class GivenView(TokenView):
    """A view of n positions whose log-probabilities are given, with the record that each belongs to."""

    def __init__(self, logprob, owner, streams):
        counts = owner.bincount()
        super().__init__(
            logits=logprob[:, None],
            targets=torch.zeros(len(logprob), dtype=torch.long),
            streams=streams,
            hidden_of={},
            keys=torch.arange(len(logprob)),
            record_targets=counts[owner],
            update=Update(1, 0),
        )
        self.__dict__["logprob"] = logprob
        self.owner = owner

    def record_mean(self, values):
        """Means of log π - log π_old over records; `values` reads what a whole micro-batch would offer."""
        found = values(self).detach()
        sums = torch.zeros(int(self.owner.max()) + 1, dtype=found.dtype).index_add(0, self.owner, found)
        return sums[self.owner] / self.record_targets
