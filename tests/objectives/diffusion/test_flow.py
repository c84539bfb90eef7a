"""flow: its loss by hand, keyed draws, and a distribution learned."""

import torch

from luthier.conformance.tiny import TINY_MODELS
from luthier.data.batches import collate
from luthier.diffusion.policy import DenoiserPolicy
from luthier.objectives.diffusion import _draws as draws
from luthier.objectives.diffusion.flow import Flow
from luthier.update import Update


class Zero(torch.nn.Module):
    """Predicts no motion at all, and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.asked = []

    def forward(self, x, level, label):
        self.asked.append((x, level, label))
        return x * self.weight


def loss_of(objective, batch, module=None, seed=0, index=1):
    module = module or Zero()
    (term,) = objective.terms(DenoiserPolicy(module), batch, Update(index, seed))
    return float(term.total.detach())


def test_of_a_denoiser_that_stands_still_it_is_the_velocity_squared():
    batch = collate(TINY_MODELS["diffusion"].rows(6, 0))
    module = Zero()
    loss = loss_of(Flow(), batch, module)
    clean = batch.streams["latent"].values.double()
    noise = draws.normal(Update(1, 0), batch.examples, 0, clean)
    x, level, label = module.asked[0]
    sigma = level.reshape(-1, 1, 1, 1)
    assert torch.allclose(x, (1 - sigma) * clean + sigma * noise, atol=1e-12)
    assert torch.equal(label, batch.streams["condition:label"].values)
    assert abs(loss - float((noise - clean).square().mean((1, 2, 3)).sum())) < 1e-9


def test_draws_are_keyed_by_seed_update_record_and_draw():
    batch = collate(TINY_MODELS["diffusion"].rows(6, 0))
    base = loss_of(Flow(), batch)
    assert base == loss_of(Flow(), batch)
    others = [loss_of(Flow(), batch, seed=1), loss_of(Flow(), batch, index=2), loss_of(Flow(draws=2), batch)]
    assert len({base, *others}) == 4


def test_keyed_numbers_are_uniform_normal_and_independent():
    records = [f"r{i}" for i in range(400)]
    like = torch.zeros(400, 64, dtype=torch.float64)
    numbers = draws.uniform(Update(3, 5), records, 0, 64, like.device)
    assert float(numbers.min()) > 0 and float(numbers.max()) < 1
    assert abs(float(numbers.mean()) - 0.5) < 0.01 and abs(float(numbers.var()) - 1 / 12) < 0.002
    first, second = (draws.normal(Update(3, 5), records, draw, like) for draw in (0, 1))
    assert abs(float(first.mean())) < 0.02 and abs(float(first.std()) - 1) < 0.02
    assert abs(float((first * second).mean())) < 0.02 and abs(float((first[:-1] * first[1:]).mean())) < 0.02
    assert abs(float((first[:, :-1] * first[:, 1:]).mean())) < 0.02
    assert abs(float((first.abs() > 1.96).double().mean()) - 0.05) < 0.01


def test_logit_normal_levels_lie_in_the_middle():
    batch = collate(TINY_MODELS["diffusion"].rows(200, 0))
    spreads = []
    for level in ("uniform", "logit_normal"):
        module = Zero()
        loss_of(Flow(level=level), batch, module)
        spreads.append(float(module.asked[0][1].std()))
    assert abs(spreads[0] - 0.289) < 0.03 and spreads[1] < 0.24
