"""rloo: answers are single actions; the gradient is that of the formula over whole answers."""

import pytest
import torch

from luthier import parts
from luthier.conformance.base import apart
from luthier.conformance.tiny import tiny_model, tiny_rows, with_streams
from luthier.conformance.training import trained
from luthier.engine.score import score, with_column
from luthier.engine.trainer import Batching
from luthier.models.policy import TokenPolicy
from luthier.objectives.base import TokenObjective
from luthier.types import Stream

WHOLE = Batching(8, 10_000)


def rloo(**options):
    return parts.build("objective", {"kind": "rloo", **options})


def rows(seed):
    """Answers with weights 1, advantages of both signs, and log-probabilities of a model made from `seed`."""
    answers = []
    for index, row in enumerate(tiny_rows()):
        weights = (row.streams["weights"].values != 0).astype("float32")
        advantages = Stream(weights * 0 + (1.0 if index % 3 else -0.5), "token")
        row.streams["weights"].values[:] = weights
        answers.append(type(row)(row.id, row.ids, {**row.streams, "advantages": advantages}))
    column = score(TokenPolicy(tiny_model(seed=seed)), answers, ["logprobs"], 50)["logprobs"]
    return with_column(answers, "old_logprobs", column)


def by_formula(answers, low, high):
    """Gradient and loss of the mean over answers, differentiated as written."""
    model, losses = tiny_model(), []
    for row in answers:
        log_p = torch.log_softmax(model(input_ids=torch.from_numpy(row.ids).long()[None]).logits[0].double(), -1)
        at = [t for t in range(1, len(row)) if row.streams["weights"].values[t]]
        old = torch.from_numpy(row.streams["old_logprobs"].values[at]).double()
        rho = (torch.stack([log_p[t - 1, row.ids[t]] for t in at]) - old).sum().exp()
        advantage = float(row.streams["advantages"].values[0])
        losses.append(-torch.minimum(rho * advantage, rho.clamp(1 - low, 1 + high) * advantage))
    loss = torch.stack(losses).mean()
    loss.backward()
    return float(loss.detach()), {name: -p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("low, high", [(0.2, 0.2), (0.9, 1e6)])
def test_the_gradient_is_of_whole_answers(low, high):
    answers = rows(seed=5)
    events = []
    options = {"clip_low": low, "clip_high": high}
    change = trained(
        rloo(**options), parts.build("tuner", "full"), WHOLE, rows=answers, disturb=False, observe=events.append
    )
    loss, wanted = by_formula(answers, low, high)
    assert events[0]["loss"] == pytest.approx(loss, rel=1e-5)
    assert apart(wanted, change) < 1e-5


class Reinforce(TokenObjective):
    UNIT = "records"
    READS = ("advantages",)

    def token_loss(self, view):
        return -view.stream("advantages") * view.logprob


def test_one_update_per_rollout_is_reinforce(monkeypatch):
    answers, full = rows(seed=0), parts.build("tuner", "full")
    wanted = trained(Reinforce(), full, WHOLE, rows=answers, disturb=False)
    assert apart(wanted, trained(rloo(), full, WHOLE, rows=answers, disturb=False)) < 1e-6
    monkeypatch.setattr(type(rloo()), "READS", ("advantages",))
    without = [
        type(row)(row.id, row.ids, {k: s for k, s in row.streams.items() if k != "old_logprobs"}) for row in answers
    ]
    assert apart(wanted, trained(rloo(), full, WHOLE, rows=without, disturb=False)) < 1e-6


def test_no_split_changes_the_gradient():
    answers, full = with_streams(rows(seed=5), []), parts.build("tuner", "full")
    whole = trained(rloo(), full, WHOLE, rows=answers)
    for batching in (Batching(8, 1), Batching(8, 10_000, "padded", "left"), Batching(8, 40, "packed")):
        assert apart(whole, trained(rloo(), full, batching, rows=answers)) < 1e-9
