"""The shared maths on the numbers of three-way distributions that fit on paper."""

import pytest
import torch

from luthier.objectives.policy_gradient import _surrogate as s

PI, OLD, REFERENCE = (torch.tensor(p, dtype=torch.float64) for p in ((0.5, 0.3, 0.2), (0.4, 0.3, 0.3), (0.4, 0.4, 0.2)))


def close(computed, wanted, within=1e-6):
    return torch.allclose(computed, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=within)


def test_ratios():
    assert close(s.ratio(PI.log(), OLD.log()), [1.25, 1.0, 2 / 3])
    mean = (PI.log() - OLD.log()).mean().expand(3)
    assert close(s.ratio(PI.log(), OLD.log(), mean), [0.941036] * 3)


def test_a_ratio_of_one_still_has_a_gradient():
    logprob = PI.log().requires_grad_()
    rho = s.ratio(logprob, None)
    assert close(rho.detach(), [1.0] * 3)
    assert close(torch.autograd.grad(rho.sum(), logprob)[0], [1.0] * 3)


def test_the_gradient_of_a_sequence_ratio_is_that_of_its_geometric_mean():
    logprob = PI.log().requires_grad_()
    whole = (logprob - OLD.log()).mean().exp()
    by_token = s.ratio(logprob, OLD.log(), (logprob - OLD.log()).mean().detach().expand(3)).mean()
    wanted, computed = (torch.autograd.grad(value, logprob)[0] for value in (whole, by_token))
    assert float(by_token.detach()) == pytest.approx(float(whole.detach())) and torch.allclose(wanted, computed)


def test_a_ratio_that_explodes_stays_a_number():
    logprob = torch.tensor([0.0, -200.0], requires_grad=True)
    loss = s.clipped(s.ratio(logprob, torch.tensor([-200.0, 0.0])), torch.ones(2), 0.2, 0.2).sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logprob.grad).all()


def test_clipping():
    rho, ones = s.ratio(PI.log(), OLD.log()), torch.ones(3, dtype=torch.float64)
    assert close(s.clipped(rho, ones, 0.2, 0.2), [-1.2, -1.0, -2 / 3])
    assert close(s.clipped(rho, ones, 0.2, 0.28), [-1.25, -1.0, -2 / 3])
    assert close(s.clipped(rho, -ones, 0.2, 0.2), [1.25, 1.0, 0.8])
    assert close(s.is_clipped(rho, ones, 0.2, 0.2), [1.0, 0.0, 0.0])
    assert close(s.is_clipped(rho, -ones, 0.2, 0.2), [0.0, 0.0, 1.0])
    assert close(s.clipped(rho, ones, 1e9, 1e9), (-rho).tolist())


def test_clipping_means_as_another_implementation_gives_them():
    rho, ones = s.ratio(PI.log(), OLD.log()), torch.ones(3, dtype=torch.float64)
    means = [s.clipped(rho, sign * ones, 0.2, high).mean() for sign, high in ((1, 0.2), (1, 0.28), (-1, 0.2))]
    assert close(torch.stack(means), [-0.955556, -0.972222, 1.016667])


def test_dual_clip_bounds_the_loss_where_the_advantage_is_negative():
    rho = torch.tensor([5.0, 2.0, 5.0])
    assert s.clipped(rho, torch.tensor([-1.0, -1.0, 1.0]), 0.2, 0.2, dual=3.0).tolist() == pytest.approx([3, 2, -1.2])


def test_cispo_clips_the_weight_and_keeps_the_gradient():
    logprob = torch.tensor([-0.1, -1.0], requires_grad=True)
    rho = s.ratio(logprob, torch.tensor([-3.0, -1.0]))
    loss = s.cispo(rho, logprob, torch.tensor([2.0, -1.0]), low=1.0, high=4.0)
    assert loss.tolist() == pytest.approx([1.0, -1.0])
    assert torch.autograd.grad(loss.sum(), logprob)[0].tolist() == pytest.approx([-10.0, 1.0])


def test_divergences_in_the_mean():
    log_p, log_r = PI.log(), REFERENCE.log()
    means = torch.stack([(PI * k(log_p, log_r)).sum() for k in (s.k1, s.k2, s.k3)])
    assert close(means, [0.0252672, 0.0248624, 0.0252672], 5e-8)
    assert float(s.k3(log_p, log_r).mean()) == pytest.approx(0.0229316, abs=5e-8)


@pytest.mark.parametrize(
    "name, wanted",
    [("k1", [0.0, 0.0, 0.0]), ("k2", [0.098938, -0.093885, -0.005053]), ("k3", [0.1, -0.1, 0.0])],
)
def test_gradients_of_the_divergences(name, wanted):
    """Samples are fixed: weighted by π, which gets no gradient."""
    logits = PI.log().requires_grad_()
    loss = (PI * s.ESTIMATORS[name](torch.log_softmax(logits, -1), REFERENCE.log())).sum()
    assert close(torch.autograd.grad(loss, logits)[0], wanted)


def test_which_divergence_each_gradient_belongs_to():
    logits = PI.log().requires_grad_()
    log_p, log_r = torch.log_softmax(logits, -1), REFERENCE.log()
    reverse = (log_p.exp() * (log_p - log_r)).sum()
    forward = (REFERENCE * (log_r - log_p)).sum()
    for name, exact in (("k2", reverse), ("k3", forward)):
        sampled = (PI * s.ESTIMATORS[name](log_p, log_r)).sum()
        wanted, sampled_gradient = (torch.autograd.grad(v, logits, retain_graph=True)[0] for v in (exact, sampled))
        assert torch.allclose(wanted, sampled_gradient, atol=1e-12)


def kl_after(loss_of, seed=0, steps=3000):
    """KL(π || reference) of one categorical policy after plain gradient descent on 64 samples a step."""
    logits = torch.tensor([2.0, 0.0, -2.0], dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        log_p = torch.log_softmax(logits, -1)
        drawn = torch.multinomial(log_p.detach().exp(), 64, replacement=True, generator=generator)
        (gradient,) = torch.autograd.grad(loss_of(log_p[drawn], REFERENCE.log()[drawn]).mean(), logits)
        with torch.no_grad():
            logits -= 0.05 * gradient
    log_p = torch.log_softmax(logits.detach(), -1)
    return float((log_p.exp() * (log_p - REFERENCE.log())).sum())


def as_reward(logprob, reference):
    """-k1 as a reward: centred advantages, and no gradient through them."""
    reward = -s.k1(logprob, reference).detach()
    return s.clipped(s.ratio(logprob, None), reward - reward.mean(), 0.2, 0.2)


def test_what_pulls_to_the_reference():
    assert kl_after(s.k1, steps=0) == pytest.approx(0.48624, abs=5e-6)
    assert 0.3 < kl_after(s.k1) < 0.55
    for loss in (s.k2, s.k3, as_reward):
        assert kl_after(loss) < 1e-12


def test_k3_may_be_held_within_a_bound():
    """Beyond it the value is the bound and the gradient 0; an exponential that overflows is no number to add."""
    far = torch.tensor([-100.0, -3.0, -1.0, 1.0], requires_grad=True)
    reference = torch.zeros(4)
    assert not torch.isfinite(s.k3(far, reference)).all()
    value = s.k3(far, reference, 10.0)
    assert torch.allclose(value.detach(), torch.tensor([10.0, 10.0, torch.e - 2, 1 / torch.e]))
    (gradient,) = torch.autograd.grad(value.sum(), far)
    assert gradient.tolist()[:2] == [0.0, 0.0]
    assert torch.allclose(gradient[2:], torch.tensor([1 - torch.e, 1 - 1 / torch.e]))


def test_value_loss():
    numbers = [torch.tensor([x], dtype=torch.float64) for x in (0.6, 0.2, 1.0)]
    assert close(s.value_loss(*numbers, 0.2), [0.18]) and close(s.value_loss(*numbers, None), [0.08])
    assert close(s.value_loss(*numbers, 1.0), [0.08])
