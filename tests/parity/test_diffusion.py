"""DiffusionNFT's loss, optimality, solvers and decay against the authors' code."""

import numpy
import pytest
import torch

from luthier.diffusion.levels import noised, solver_levels
from luthier.diffusion.optimality import advantages, optimality, return_decay
from luthier.diffusion.solvers import dpm2, euler
from luthier.objectives.diffusion import _nft
from parity.golden import difference, golden, tensor

SOLVER, DECAY = golden("diffusion_nft_solver"), golden("diffusion_nft_decay")


@pytest.mark.parametrize("case", golden("diffusion_nft_loss"), ids=lambda case: f"beta {case['beta']}")
def test_loss(case):
    names = ("level", "x0", "noise", "old", "initial")
    level, clean, noise, old, initial = (tensor(case[name]) for name in names)
    trained = tensor(case["trained"], requires_grad=True)
    r = optimality(numpy.array(case["advantages"]), case["adv_clip"])
    assert r.tolist() == case["optimality"]
    x = noised(clean, noise, level)
    policy = _nft.practical(trained, old, x, clean, level, tensor(r.tolist()), case["beta"], case["adv_clip"])
    loss = policy.mean() + case["kl_weight"] * _nft.distance(trained, initial).mean()
    assert difference(loss, case["loss"]) < 1e-14
    assert difference(torch.autograd.grad(loss, trained)[0], case["gradient_trained"]) < 1e-14


def test_advantages():
    case = golden("diffusion_nft_advantages")
    assert difference(advantages(numpy.array(case["rewards"])), case["advantages"]) < 1e-14


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_decay(kind):
    for step, wanted in DECAY[str(kind)].items():
        assert return_decay(int(step), kind) == pytest.approx(wanted, abs=1e-15)


@pytest.mark.parametrize("steps", [6, 10])
@pytest.mark.parametrize("name, solver", [("flow", euler), ("dpm2", dpm2)])
def test_solvers(name, solver, steps):
    levels, matrix = solver_levels(steps, SOLVER["shift"]), tensor(SOLVER["matrix"])
    assert difference(levels, SOLVER[f"levels_{steps}"]) < 1e-14
    found = solver(lambda x, level: torch.tanh(x @ matrix) + level[:, None] * x, tensor(SOLVER["noise"]), levels)
    assert difference(found, SOLVER["samples"][f"{name} {steps}"]) < 1e-14
