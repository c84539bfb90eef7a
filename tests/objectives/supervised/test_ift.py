"""ift: the weights of the card and their gradients, the blend, and sft as its limit."""

from dataclasses import replace

import pytest
import torch

from luthier import parts
from luthier.conformance.base import apart
from luthier.conformance.tiny import tiny_model, tiny_rows
from luthier.conformance.training import trained
from luthier.data.batches import collate
from luthier.engine.trainer import Batching
from luthier.errors import ModelError, RecipeError
from luthier.models.policy import TokenPolicy
from luthier.objectives.base import SequenceObjective
from luthier.objectives.supervised.ift import discounted, greedy_guesses
from luthier.types import Row, Stream
from luthier.update import Update

WHOLE = Batching(8, 10_000)


def ift(**options):
    return parts.build("objective", {"kind": "ift", **options})


def full():
    return parts.build("tuner", "full")


def of_losses(objective, losses=(1.0, 2.0, 4.0)):
    """Weights, loss and gradient of one record with these losses per token."""
    values = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
    weights = objective.relation(values, torch.zeros(len(losses)).long(), torch.arange(3, 3 + len(losses)))
    loss = (weights * values).mean()
    (gradient,) = torch.autograd.grad(loss, values)
    return weights.detach(), float(loss.detach()), gradient


def close(computed, wanted):
    return torch.allclose(computed, torch.tensor(wanted).double(), atol=1e-6)


@pytest.mark.parametrize(
    "decay, weights, loss, gradient",
    [
        (0.95, [1.197425, 1.066830, 0.735745], 2.091355, [0.332228, 0.286441, 0.296561]),
        (1.0, [1.235294, 1.058824, 0.705882], 2.058824, [0.349481, 0.287197, 0.283737]),
        (0.5, [0.818182, 1.090909, 1.090909], 2.454545, [0.140496, 0.256198, 0.450413]),
        (0.0, [1.0, 1.0, 1.0], 2.333333, [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_card(decay, weights, loss, gradient):
    computed = of_losses(ift(decay=decay))
    assert close(computed[0], weights) and abs(computed[1] - loss) < 1e-6 and close(computed[2], gradient)


def test_card_detached():
    weights, loss, gradient = of_losses(ift(detach_weights=True))
    assert close(weights, [1.197425, 1.066830, 0.735745]) and abs(loss - 2.091355) < 1e-6
    assert close(gradient, [0.399142, 0.355610, 0.245248])


def test_equal_losses_without_decay_fall_linearly():
    weights, _, _ = of_losses(ift(decay=1.0), (2.0,) * 4)
    assert close(weights, [1.6, 1.2, 0.8, 0.4])


def test_weights_by_position_ignore_the_losses():
    weights, loss, gradient = of_losses(ift(decay=0.5, propagation="mask"))
    assert close(weights, [x * 3 / 4.25 for x in (1.75, 1.5, 1.0)])
    assert close(gradient, [float(w) / 3 for w in weights]) and loss > 0


def test_a_perfect_fit_is_no_division_by_zero():
    weights, loss, gradient = of_losses(ift(), (0.0, 0.0))
    assert loss == 0.0 and bool(torch.isfinite(gradient).all() and torch.isfinite(weights).all())


def test_discounted_sums_stay_within_their_record_and_count_gaps():
    owner, position = torch.tensor([0, 1, 0, 1, 0]), torch.tensor([2, 1, 3, 9, 7])
    values = torch.tensor([1.0, 10.0, 2.0, 20.0, 4.0], dtype=torch.float64)
    wanted = [1 + 0.5 * 2 + 0.5**5 * 4, 10 + 0.5**8 * 20, 2 + 0.5**4 * 4, 20.0, 4.0]
    assert close(discounted(values, owner, position, 0.5), wanted)
    weights = ift(decay=0.5).relation(values, owner, position)
    assert float(weights[owner == 0].sum()) == pytest.approx(3) and float(weights[owner == 1].sum()) == pytest.approx(2)


class PerRecord(SequenceObjective):
    """The mean cross-entropy of each record; the rows' weights are 1."""

    def sequence_loss(self, view):
        return -view.logprob / view.count


def plain_rows():
    rows = tiny_rows()
    for row in rows:
        row.streams["weights"].values[:] = row.streams["weights"].values != 0
    return rows


def test_without_residual_and_propagation_it_is_sft_by_record():
    wanted = trained(PerRecord(), full(), WHOLE, plain_rows())
    options = {"residual": 0.0, "decay": 0.0}
    through = trained(ift(train_embedding_through_blend=True, **options), full(), WHOLE, plain_rows())
    assert apart(wanted, through) < 1e-6
    default = trained(ift(**options), full(), WHOLE, plain_rows())
    table = "model.embed_tokens.weight"
    assert (
        apart({n: t for n, t in wanted.items() if n != table}, {n: t for n, t in default.items() if n != table}) < 1e-6
    )
    assert apart({table: wanted[table]}, {table: default[table]}) > 1e-2
    assert float(default[table].abs().max()) > 0  # the tied head still trains it


@pytest.mark.parametrize("side, layout", [("right", "padded"), ("left", "padded"), ("right", "packed")])
def test_a_full_residual_reads_the_guesses(side, layout):
    policy = TokenPolicy(tiny_model())
    batch = collate(tiny_rows(), layout, side=side)
    guesses, _ = greedy_guesses(policy, batch)
    assert not torch.equal(guesses, batch.ids[batch.targets()])
    embeddings = ift().blend(policy, batch, guesses, 1.0)
    guessed = replace(batch, ids=batch.ids.index_put(batch.targets(), guesses))
    assert torch.allclose(policy.hidden(batch, embeddings), policy.hidden(guessed), atol=1e-12)
    untouched = torch.ones_like(batch.ids, dtype=torch.bool).index_put(batch.targets(), torch.tensor(False))
    assert torch.equal(embeddings[untouched], policy.embed(batch.ids)[untouched])


def test_guesses_are_of_the_position_itself():
    """A guess at t sees the tokens before t: changing token t moves later guesses only."""
    policy = TokenPolicy(tiny_model())
    (row,) = tiny_rows(1)
    row.streams["weights"].values[3:] = 1.0
    at = 6
    ids = row.ids.copy()
    before, after = [], []
    for token in range(61):
        ids[at] = token
        guesses, _ = greedy_guesses(policy, collate([replace(row, ids=ids.copy())]))
        index = [int(c) for c in collate([row]).targets()[1]].index(at)
        before.append(tuple(guesses[: index + 1].tolist()))
        after.append(tuple(guesses[index + 1 :].tolist()))
    assert len(set(before)) == 1 and len(set(after)) > 1


def greedy_record(policy, length=10):
    """A record whose answer is the model's own greedy continuation."""
    ids = torch.tensor([[5, 9, 3]])
    with torch.no_grad():
        while ids.shape[1] < length:
            ids = torch.cat([ids, policy.module(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    weights = torch.tensor([0.0] * 3 + [1.0] * (length - 3)).numpy()
    return Row("greedy", ids[0].int().numpy(), {"weights": Stream(weights, "token")})


def test_right_guesses_leave_the_input_alone():
    policy = TokenPolicy(tiny_model())
    batch = collate([greedy_record(policy)])
    guesses, _ = greedy_guesses(policy, batch)
    assert torch.equal(guesses, batch.ids[batch.targets()])
    for residual in (0.0, 0.3, 1.0):
        assert torch.allclose(ift().blend(policy, batch, guesses, residual), policy.embed(batch.ids), atol=1e-14)


def test_residual_by_progress_and_noise():
    objective = ift(residual=0.4, residual_start=0.1)
    assert objective.residual_at(Update(1, 0, progress=0.5)) == pytest.approx(0.25)
    noisy = ift(residual=0.2, residual_noise=0.5)
    drawn = torch.tensor([noisy.residual_at(Update(index, 0)) for index in range(4000)])
    assert noisy.residual_at(Update(3, 0)) == float(noisy.residual_at(Update(3, 0)))
    assert abs(float(drawn.mean()) - 0.2008) < 0.006 and abs(float(drawn.std()) - 0.098) < 0.006
    assert float(drawn.min()) >= 0.0 and float(drawn.max()) <= 1.0


def test_residual_warms_up_over_a_number_of_updates_and_then_stays():
    """The released code: a straight line over the first updates, counted from 0."""
    objective = ift(residual=0.4, residual_start=0.1, residual_warmup=4)
    residuals = [objective.residual_at(Update(index, 0, progress=0.9)) for index in range(1, 8)]
    assert residuals == pytest.approx([0.1, 0.175, 0.25, 0.325, 0.4, 0.4, 0.4])
    with pytest.raises(RecipeError, match="residual_start"):
        ift(residual_warmup=4)


def test_reports_plain_and_blended_likelihood():
    events, sft = [], []
    trained(ift(), full(), WHOLE, observe=events.append)
    trained(parts.build("objective", "sft"), full(), WHOLE, observe=sft.append)
    assert events[0]["nll"] == pytest.approx(sft[0]["nll"], rel=1e-9)
    assert events[0]["blended_nll"] != pytest.approx(events[0]["nll"], rel=1e-4)
    assert 0 <= events[0]["agreement"] < 1


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")
@pytest.mark.parametrize("tuner", ["full", {"kind": "lora", "targets": ["q_proj", "embed_tokens"]}])
def test_checkpointing_changes_no_gradient(checkpointed, tuner):
    tuner = parts.build("tuner", tuner)
    objective = ift(train_embedding_through_blend=True)
    assert apart(trained(objective, tuner, WHOLE), checkpointed(objective, tuner, WHOLE)) < 1e-9


def test_a_model_that_needs_the_ids_is_refused():
    policy = TokenPolicy(tiny_model())
    forward = policy.module.forward

    def peeking(input_ids=None, **more):
        if input_ids is None:
            raise ValueError("needs ids")
        return forward(input_ids=input_ids, **more)

    policy.module.forward = peeking
    with pytest.raises(ModelError, match="embeddings alone"):
        ift().start(policy)
