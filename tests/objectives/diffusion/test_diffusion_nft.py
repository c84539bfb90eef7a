"""diffusion_nft: every number of the card, and the ring of eight modes."""

import numpy
import pytest
import torch

from luthier.diffusion.optimality import advantages, group_filter, optimality, return_decay
from luthier.objectives.diffusion import _nft as nft

X0 = torch.tensor([-1.0, 1.0], dtype=torch.float64)
R = torch.tensor([0.2, 0.9], dtype=torch.float64)
SIGMA, X = 0.5, 0.2


def posterior(weights=None):
    """Of the two clean samples, given x at σ, and optionally tilted by weights."""
    log = -((X - (1 - SIGMA) * X0) ** 2) / (2 * SIGMA**2)
    return torch.softmax(log + (0 if weights is None else weights.log()), 0)


def velocity(probabilities):
    """E[ε - x₀ | x] under probabilities of the clean samples."""
    return float((probabilities * ((X - (1 - SIGMA) * X0) / SIGMA - X0)).sum())


def test_one_dimension_in_closed_form():
    p = posterior()
    assert p.tolist() == pytest.approx([0.3100, 0.6900], abs=5e-5)
    old, plus, minus = velocity(p), velocity(posterior(R)), velocity(posterior(1 - R))
    assert (old, plus, minus) == (
        pytest.approx(-0.3599, abs=5e-5),
        pytest.approx(-1.2369, abs=5e-5),
        pytest.approx(1.5294, abs=5e-5),
    )
    a = float((p * R).sum())
    assert a == pytest.approx(0.6830, abs=5e-5)
    assert a * (plus - old) == pytest.approx(-0.5989, abs=5e-5) == (1 - a) * (old - minus)


@pytest.mark.parametrize("beta, wanted", [(1.0, -1.5578), (0.1, -12.3388)])
def test_the_minimiser_moves_against_both(beta, wanted):
    p = posterior()
    old = torch.full((2, 1), velocity(p), dtype=torch.float64)
    target = ((X - (1 - SIGMA) * X0) / SIGMA - X0)[:, None]
    free = torch.zeros(1, dtype=torch.float64, requires_grad=True)

    def gradient(at):
        free.data.fill_(at)
        loss = (p * nft.theoretical(free.expand(2, 1), old, target, R, beta)).sum()
        return float(torch.autograd.grad(loss, free)[0])

    low, high = gradient(0.0), gradient(1.0)  # the loss is a parabola: its gradient is a line
    assert -low / (high - low) == pytest.approx(wanted, abs=1e-4)


def drawn(rows=5, size=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    clean, noise, trained, old = (draw(rows, size) for _ in range(4))
    level = torch.rand(rows, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    return clean, noise, trained.requires_grad_(), old, level


def practical(trained, old, clean, noise, level, r, beta=1.0):
    x = (1 - level[:, None]) * clean + level[:, None] * noise
    return nft.practical(trained, old, x, clean, level, r, beta, 5.0)


def test_all_optimal_is_flow_matching():
    clean, noise, trained, old, level = drawn()
    one, target = torch.ones(5, dtype=torch.float64), noise - clean
    flow = (trained - target).square().mean(1)
    assert torch.allclose(nft.theoretical(trained, old, target, one, 1.0), flow)
    size = (level[:, None] * (trained - target)).detach().abs().mean(1)  # the error of the clean sample
    wanted = 5.0 * level**2 * flow / size
    assert torch.allclose(practical(trained, old, clean, noise, level, one), wanted)


def test_one_half_says_nothing():
    clean, noise, _, old, level = drawn()
    trained, half = old.clone().requires_grad_(), torch.full((5,), 0.5, dtype=torch.float64)
    for loss in (
        nft.theoretical(trained, old, noise - clean, half, 0.7),
        practical(trained, old, clean, noise, level, half, 0.7),
    ):
        (gradient,) = torch.autograd.grad(loss.sum(), trained)
        assert float(gradient.abs().max()) < 1e-12


def test_gradient_at_old_is_independent_of_beta_and_flips_with_r():
    clean, noise, _, old, level = drawn()
    trained, r = old.clone().requires_grad_(), torch.tensor([0.1, 0.4, 0.5, 0.8, 1.0], dtype=torch.float64)
    wanted = 2 * (2 * r - 1)[:, None] * (old - (noise - clean)) / 7  # a mean over 7 dimensions
    for beta in (1.0, 0.1):
        for sign, given in ((1, r), (-1, 1 - r)):
            loss = nft.theoretical(trained, old, noise - clean, given, beta) / beta
            (gradient,) = torch.autograd.grad(loss.sum(), trained)
            assert torch.allclose(sign * gradient, wanted, atol=1e-12)
    found = [
        torch.autograd.grad(practical(trained, old, clean, noise, level, r, b).sum(), trained)[0] for b in (1.0, 0.1)
    ]
    assert torch.allclose(*found, atol=1e-12)


def test_the_self_normaliser_has_a_floor():
    clean, noise, trained, old, _ = drawn()
    level, one = torch.full((5,), 1e-9, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    flow = (trained - (noise - clean)).square().mean(1)
    assert torch.allclose(practical(trained, old, clean, noise, level, one), 5e-18 * flow / nft.FLOOR, rtol=1e-3)


def test_rewards_become_probabilities():
    rewards = numpy.array([[0.0, 1.0, 2.0], [3.0, 3.0, 9.0]])
    a = advantages(rewards)
    assert a == pytest.approx((rewards - [[1.0], [5.0]]) / (numpy.std([0, 1, 2, 3, 3, 9]) + 1e-4))
    assert optimality(numpy.array([0.0, 5.0, -5.0, 50.0, 2.5])).tolist() == [0.5, 1.0, 0.0, 1.0, 0.75]
    both = numpy.array([-2.5, 2.5])
    modes = {
        mode: optimality(both, 5.0, mode).tolist() for mode in ("positive_only", "negative_only", "one_only", "binary")
    }
    assert modes["positive_only"] == [0.5, 0.75] and modes["negative_only"] == [0.25, 0.5]
    assert modes["one_only"] == pytest.approx([0.5, 0.6]) and modes["binary"] == pytest.approx([0.4, 0.6])


def test_groups_that_teach_nothing_are_masked_and_solved_ones_banned():
    spread = lambda mean, std: [mean - std, mean + std]  # noqa: E731
    rewards = numpy.array([spread(0.95, 0.04), spread(0.5, 0.04), spread(0.5, 0.2), spread(0.95, 0.2)])
    kept, solved = group_filter(rewards, 0.05, 0.9)
    assert kept.tolist() == [False, False, True, False] and solved.tolist() == [True, False, False, False]


def test_decays():
    assert [return_decay(step, 0) for step in (0, 900)] == [0.0, 0.0]
    assert [return_decay(step, 1) for step in (0, 100, 900)] == pytest.approx([0.0, 0.1, 0.5])
    assert [return_decay(step, 2) for step in (74, 95, 900)] == pytest.approx([0.0, 0.15, 0.999])


def test_equal_rewards_of_a_group_say_exactly_nothing():
    found = advantages(numpy.array([[0.1] * 3, [0.55, 0.2, 0.4]]))
    assert found[0].tolist() == [0.0] * 3 and optimality(found)[0].tolist() == [0.5] * 3
