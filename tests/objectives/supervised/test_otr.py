"""otr: the numbers of the card, what sampling has to do with the sum over the vocabulary, and dft."""

import pytest
import torch

from luthier import parts
from luthier.conformance.base import apart
from luthier.conformance.tiny import tiny_rows
from luthier.conformance.training import trained
from luthier.engine.trainer import Batching
from luthier.models.kernels.head import target_logprob
from luthier.objectives import _divergence
from luthier.objectives._draws import keyed_uniform
from luthier.objectives.supervised import otr as file
from luthier.objectives.views import TokenView
from luthier.update import Update
from support.oracle import gradient_of, view_of

LOGITS = (2.0, 1.0, 0.0, -1.0)
DFT = [0.152532, -0.180769, 0.020643, 0.007594]


def otr(**options):
    return parts.build("objective", {"kind": "otr", **options})


def close(gradient, wanted, atol=1e-6):
    return torch.allclose(gradient, torch.tensor(wanted).double(), atol=atol)


@pytest.mark.parametrize(
    "temperature, mismatch, loss, gradient",
    [
        (1.0, 0.0, 0.341156, DFT),
        (1.0, -0.1, None, [0.167785, -0.198846, 0.022707, 0.008354]),
        (1.3, 0.0, 0.375422, [0.167853, -0.198926, 0.022716, 0.008357]),
        (1.3, -0.1, 0.301929, [0.176503, -0.216439, 0.028353, 0.011584]),
    ],
)
def test_card_exact(temperature, mismatch, loss, gradient):
    computed = gradient_of(otr(estimator="exact", sampling_temperature=temperature, mismatch_reward=mismatch))
    assert loss is None or abs(computed[0] - loss) < 1e-6
    assert close(computed[1], gradient)


def test_at_temperature_one_it_is_a_multiple_of_dft():
    dft = gradient_of(parts.build("objective", "dft"))[1]
    exact = gradient_of(otr(estimator="exact", sampling_temperature=1.0, mismatch_reward=-0.1))[1]
    assert torch.allclose(exact, 1.1 * dft, atol=1e-12)


def test_tempered_distribution_of_the_card():
    shares = torch.softmax(torch.tensor(LOGITS).double() / 1.3, -1)
    assert close(shares, [0.562565, 0.260676, 0.120789, 0.055970])


def repeated(objective, repeats):
    """Gradients [repeats,V] of independent positions that share the card's logits."""
    z = torch.tensor([LOGITS], dtype=torch.float64).repeat(repeats, 1).requires_grad_()
    ones = torch.ones(repeats, dtype=torch.float64)
    keys = torch.arange(repeats)
    targets = torch.ones(repeats, dtype=torch.int64)
    view = TokenView(z, targets, {"weights": ones}, {}, keys, targets, Update(1, 0))
    (gradient,) = torch.autograd.grad(objective.weighted(view).sum(), z)
    return gradient


def test_monte_carlo_of_the_card():
    exact = gradient_of(otr(estimator="exact", sampling_temperature=1.0))[1]
    many = repeated(otr(sampling_temperature=1.0), 2000)
    few = repeated(otr(sampling_temperature=1.0, num_samples=64), 2000)
    mean, spread = many.mean(0), many.std(0)
    assert float((mean - exact).norm() / exact.norm()) < 0.01
    assert bool(((mean - exact).abs() < 4 * spread / 2000**0.5).all())
    # The standard deviation of 2000 draws is known to 1 / sqrt(2 · 2000), 1.6%.
    assert torch.allclose(spread, torch.tensor([0.016698, 0.019649, 0.002837, 0.001372]).double(), rtol=0.08)
    assert bool(((few.std(0) / spread - 2).abs() < 0.2).all())


def test_one_sample_is_unbiased():
    exact = gradient_of(otr(estimator="exact", sampling_temperature=1.3))[1]
    single = repeated(otr(num_samples=1), 40_000)
    assert bool(((single.mean(0) - exact).abs() < 4 * single.std(0) / 200).all())


def test_samples_come_from_the_tempered_distribution_and_their_likelihood_does_not():
    """Mixing the two up is invisible at temperature 1."""
    exact = gradient_of(otr(estimator="exact", sampling_temperature=1.3))[1]
    mean = repeated(otr(sampling_temperature=1.3), 4000).mean(0)
    other = gradient_of(otr(estimator="exact", sampling_temperature=1.0))[1]
    assert float((mean - exact).norm()) < 0.1 * float((mean - other).norm())


def test_counts_and_single_samples_give_one_loss():
    view = view_of(None)
    draws = view.uniform(256)
    sampled = file._draw(torch.softmax(view.logits.detach() / 1.3, -1), draws)
    rewards = 1.1 * (sampled == 1).double() - 0.1
    wanted = -(rewards * torch.log_softmax(view.logits, -1).gather(-1, sampled)).mean()
    gradient = torch.autograd.grad(wanted, view.logits)[0][0]
    computed = gradient_of(otr())
    assert abs(computed[0] - float(wanted.detach())) < 1e-12
    assert torch.allclose(computed[1], gradient, atol=1e-12)


@pytest.mark.parametrize("estimator", ["sampled", "exact"])
def test_limits(estimator):
    known = gradient_of(otr(estimator=estimator), logits=(-800.0, 0.0, -800.0, -800.0))
    assert float(known[1].abs().max()) < 1e-200
    unlikely = {"logits": (0.0, -40.0, 0.0, 0.0)}
    assert float(gradient_of(otr(estimator=estimator, mismatch_reward=0.0), **unlikely)[1].abs().max()) < 1e-12
    assert float(gradient_of(parts.build("objective", "sft"), **unlikely)[1].abs().max()) > 0.9


def test_draws_are_tokens_that_can_occur():
    """A number that rounds to one must not fall behind the last token, nor on one of probability zero."""
    probabilities = torch.tensor([[0.25, 0.0, 0.75, 0.0]])
    uniform = torch.tensor([[0.0, 0.2499999, 0.25, 0.5, 1.0 - 2.0**-53]], dtype=torch.float64)
    assert file._draw(probabilities, uniform).tolist() == [[0, 0, 2, 2, 2]]


def test_draws_repeat_by_seed_and_update():
    first, same, other = (gradient_of(otr(), update=Update(index, 0))[0] for index in (3, 3, 4))
    assert first == same != other
    keys = torch.tensor([5, 6])
    assert torch.equal(keyed_uniform(keys, Update(1, 0), 3)[1:], keyed_uniform(keys[1:], Update(1, 0), 3))


def test_each_record_counts_the_same():
    full, whole, rows = parts.build("tuner", "full"), Batching(3, 10_000), tiny_rows(3)
    together = trained(otr(), full, whole, rows)
    alone = [trained(otr(), full, Batching(1), [row]) for row in rows]
    mean = {name: sum(change[name] for change in alone) / 3 for name in together}
    assert apart(together, mean) < 1e-6  # transformers' norm computes in float32
    assert apart(together, trained(otr(normalization="token"), full, whole, rows)) > 1e-2


def test_weighted_log_probability():
    z = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    one_hot = torch.nn.functional.one_hot(torch.arange(5), 7).double()
    computed = _divergence.weighted_logprob(z, one_hot)
    assert torch.allclose(computed, target_logprob(z, torch.arange(5)), atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: _divergence.weighted_logprob(x, one_hot * 0.3 - 0.1), (z,))


def test_reports_the_hit_rate():
    update = Update(1, 0)
    gradient_of(otr(estimator="exact"), update=update)
    assert update.meters["hit_rate"][1] == pytest.approx(0.260676, abs=1e-6)


def test_checkpointing_changes_no_gradient(checkpointed):
    full = parts.build("tuner", "full")
    assert apart(trained(otr(), full, Batching(8, 10_000)), checkpointed(otr(), full, Batching(8, 10_000))) < 1e-9
