"""Solvers on a velocity known in closed form: one Gaussian, whose path every solver must end on."""

import itertools

import torch

from luthier.diffusion.levels import noised, solver_levels, velocity_of
from luthier.diffusion.solvers import dpm2, euler

MEAN, SPREAD = 2.0, 0.5


def velocity(x, level):
    """E[ε - x₀ | x] where x₀ is normal: linear in x."""
    sigma = level[:, None]
    slope = (sigma - (1 - sigma) * SPREAD**2) / (sigma**2 + (1 - sigma) ** 2 * SPREAD**2)
    return slope * (x - (1 - sigma) * MEAN) - MEAN


NOISE = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
TRUTH = MEAN + SPREAD * NOISE


def test_levels_fall_from_noise_to_data():
    assert solver_levels(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    shifted = solver_levels(4, shift=3.0)
    assert shifted[0] == 1.0 and shifted[-1] == 0.0 and abs(shifted[2] - 0.75) < 1e-12
    assert all(a > b for a, b in itertools.pairwise(shifted))


def test_of_first_order_dpm_is_euler():
    for levels in (solver_levels(5), solver_levels(7, 3.0)):
        assert torch.allclose(dpm2(velocity, NOISE, levels, order=1), euler(velocity, NOISE, levels), atol=1e-12)


def test_orders_of_convergence():
    def error(solve, steps):
        return float((solve(velocity, NOISE, solver_levels(steps)) - TRUTH).abs().max())

    assert 1.8 < error(euler, 80) / error(euler, 160) < 2.2
    assert 3.0 < error(dpm2, 160) / error(dpm2, 320) < 5.0
    assert all(error(dpm2, steps) < 0.7 * error(euler, steps) for steps in (5, 10, 20, 40))


def test_predictions_of_each_kind_give_one_velocity():
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(4, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    level = torch.tensor([0.1, 0.5, 0.7, 0.9], dtype=torch.float64)
    x = noised(clean, noise, level)
    for kind, predicted in (("velocity", noise - clean), ("epsilon", noise), ("sample", clean)):
        assert torch.allclose(velocity_of(predicted, kind, x, level), noise - clean, atol=1e-12)
