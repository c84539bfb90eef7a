"""adamw: decay on matrices only, options checked."""

import pytest
import torch
from torch import nn

from luthier import parts
from luthier.conformance.base import check_options
from luthier.conformance.base import variants as all_settings
from luthier.conformance.tiny import tiny_rows
from luthier.conformance.training import trainer
from luthier.engine.trainer import Batching
from luthier.errors import RecipeError


def test_decay_spares_vectors():
    part = parts.build("optimizer", {"kind": "adamw", "weight_decay": 0.5, "lr": 0.1})
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimiser = part.make([matrix, vector])
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    optimiser.step()
    assert torch.allclose(matrix, torch.full((2, 2), 0.95)) and torch.equal(vector, torch.ones(2))


def test_every_option_changes_the_result():
    from luthier.engine.budget import Budget

    def result(optimizer):
        run = trainer(
            parts.build("objective", "sft"),
            parts.build("tuner", "full"),
            tiny_rows(),
            Batching(3, 40),
            optimizer=optimizer,
            budget=Budget("updates", 3),
        )
        run.train()
        return {name: p.detach() for name, p in run.masters.master.items()}

    check_options(all_settings(parts.load("optimizer", "adamw")), result)


def test_wrong_values_are_refused():
    with pytest.raises(RecipeError, match="lr"):
        parts.build("optimizer", {"kind": "adamw", "lr": -1.0})
