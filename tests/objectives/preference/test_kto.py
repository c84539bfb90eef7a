"""kto: the numbers of the card, its baseline by hand and under any cut, and that it learns from labels."""

import math
from dataclasses import replace

import pytest
import torch

from luthier import parts
from luthier.conformance import derivative, training
from luthier.conformance.base import apart
from luthier.conformance.tiny import tiny_labelled, tiny_model, tiny_pairs
from luthier.conformance.training import trained, trainer
from luthier.data.batches import collate, mismatched
from luthier.data.pairs import rows_of_record
from luthier.engine.budget import Budget
from luthier.engine.trainer import Batching
from luthier.errors import RecipeError
from luthier.objectives.preference.kto import KTO
from luthier.objectives.sum import build_objective, reads_of
from luthier.objectives.views import SequenceView, sequence_view
from luthier.update import Update
from objectives.preference.test_pairs import accuracy, comparisons, with_reference

FULL = parts.build("tuner", "full")
WHOLE = Batching(16, 10_000)
ROWS = tiny_labelled(seed=2)
"""Records on which the matrix's disturbed model has a baseline above 0."""


def kto(**options):
    return parts.build("objective", {"kind": "kto", **options})


def loss_and_gradients(objective, baseline):
    """The losses of the card's good and bad answer under a baseline, and their gradients."""
    logprob = torch.tensor([-10.0, -12.0], dtype=torch.float64, requires_grad=True)
    update = Update(1, 0)
    update.set_prepared(objective, baseline)
    view = SequenceView(
        logprob=logprob,
        count=torch.tensor([5.0, 4.0]),
        streams={"preferred": torch.tensor([1.0, 0.0])},
        reference_logprob={"initial": torch.tensor([-11.0, -11.0], dtype=torch.float64)},
        update=update,
    )
    loss = objective.sequence_loss(view)
    (gradient,) = torch.autograd.grad(loss.sum(), logprob)
    return loss.tolist(), gradient.tolist(), {name: total for name, (_, total) in update.meters.items()}


@pytest.mark.parametrize("baseline, wanted", [(0.0, (0.475021, 0.475021)), (0.5, (0.487503, 0.462570))])
def test_card(baseline, wanted):
    losses, _, meters = loss_and_gradients(kto(), baseline)
    assert losses == pytest.approx(wanted, abs=1e-6)
    assert meters == pytest.approx({"good_reward": 0.1, "bad_reward": -0.1, "kl": 2 * baseline})


def test_gradients_and_weights():
    slope = 0.1 / (1 + math.exp(0.05)) / (1 + math.exp(-0.05))  # of r = 1 against z = 0.5
    _, (good, bad), _ = loss_and_gradients(kto(), 0.5)
    assert good == pytest.approx(-slope) and 0 < bad < slope
    plain, weighted = (loss_and_gradients(part, 0.5) for part in (kto(), kto(desirable_weight=3, undesirable_weight=0)))
    assert weighted[0] == [3 * plain[0][0], 0] and weighted[1] == [pytest.approx(3 * good), 0]


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_the_loss_and_its_baseline_by_hand(tuner):
    events, seed = [], 0
    run = trainer(kto(), parts.build("tuner", tuner), ROWS, WHOLE, seed=seed, observe=events.append)
    policy, reference = run.policy.module, tiny_model()

    def logprob(model, row):
        ids = torch.tensor(row.ids.astype(int))[None]
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=ids).logits[0], -1)
        return sum(float(log_p[t - 1, ids[0, t]]) for t in range(1, len(row.ids)) if row.streams["weights"].values[t])

    others = mismatched(ROWS, f"{seed}/1").values()
    z = sum(logprob(policy, row) - logprob(reference, row) for row in others) / len(ROWS)
    assert z > 0.04
    view = sequence_view(run.policy, collate(run_rows(run)), Update(1, 0))
    sign = torch.where(view.streams["preferred"] == 1, 1.0, -1.0).double()
    wanted = torch.sigmoid(-0.1 * sign * (view.log_ratio() - z)).mean().detach()
    run.train()
    assert events[0]["kl"] == pytest.approx(z, rel=1e-5)
    assert events[0]["loss"] == pytest.approx(float(wanted), rel=1e-6)


def run_rows(run):
    return [row for record_rows in run.source.ordered.rows_by_record for row in record_rows]


@pytest.fixture
def above_zero(monkeypatch):
    """The matrix's checks on records with a baseline above 0."""
    events = []
    trained(kto(), FULL, WHOLE, rows=ROWS, observe=events.append)
    assert events[0]["kl"] > 0.05
    for module in (training, derivative):
        monkeypatch.setattr(module, "rows_for", lambda objective: ROWS)


def test_the_baseline_is_one_number_under_any_cut(above_zero):
    training.check_invariance([kto()], FULL)
    training.check_ranks(kto(), FULL)


class Held(KTO):
    DETACHED = ("baseline",)


def test_the_baseline_is_held_constant(above_zero):
    derivative.check_derivative(Held(desirable_weight=3.0), FULL)  # at 1, good and bad answers cancel


def test_a_negative_estimate_is_no_baseline():
    events = []
    found, without = (
        trained(one, FULL, WHOLE, rows=tiny_labelled(), observe=events.append) for one in (kto(), kto(baseline="zero"))
    )
    assert events[0]["kl"] == 0 and apart(found, without) == 0


def test_pairs_are_two_answers():
    pairs = tiny_pairs()
    single = [rows_of_record(row.id, [replace(row, record="")], label(row))[0] for row in pairs]
    seen = [[], []]
    one, two = (
        trained(kto(), FULL, Batching(count, 10_000), rows=rows, observe=events.append)
        for rows, count, events in ((pairs, 8, seen[0]), (single, 16, seen[1]))
    )
    assert seen[0][0]["loss"] == pytest.approx(seen[1][0]["loss"], rel=1e-9)
    assert apart(one, two) < 1e-9
    assert kto().units(collate(pairs))["answers"] == 16 and kto().units(collate(pairs))["good"] == 8


def test_beside_an_objective_of_pairs():
    members = [
        {"objective": {"kind": "kto"}, "coefficient": 1.0},
        {"objective": {"kind": "dpo"}, "coefficient": 0.5},
    ]
    pairs, small = tiny_pairs(), Batching(8, 40)
    both = trained(build_objective(members), FULL, small, rows=pairs)
    one, other = (trained(parts.build("objective", name), FULL, small, rows=pairs) for name in ("kto", "dpo"))
    assert apart(both, {name: one[name] + 0.5 * other[name] for name in one}) < 1e-9


def label(row):
    return bool(row.streams["preferred"].values)


def test_without_a_baseline_no_second_model_is_read():
    assert reads_of(kto()) == ("logprobs:initial", "logits:initial")
    assert reads_of(kto(baseline="zero")) == ("logprobs:initial",)


def test_one_prompt_is_refused_at_the_start_and_has_no_baseline_later():
    with pytest.raises(RecipeError, match=r"(?s)only one prompt.*records"):
        trained(kto(), FULL, Batching(1, 10_000), rows=ROWS)
    events = []
    odd = {"budget": Budget("epochs", 1), "observe": events.append}
    trained(kto(), FULL, Batching(7, 10_000), rows=ROWS, **odd)
    assert [event["records"] for event in events] == [7, 8] and events[1]["kl"] == 0


def test_it_learns_which_answers_are_good():
    train, test = with_reference(comparisons(100, 0)), with_reference(comparisons(50, 1))
    rows = [rows_of_record(row.id, [replace(row, record="")], label(row))[0] for row in train]
    events = []
    adamw = parts.build("optimizer", {"kind": "adamw", "lr": 5e-3})
    more = {"optimizer": adamw, "budget": Budget("epochs", 2), "observe": events.append}
    run = trainer(kto(), FULL, rows, Batching(20, 2000), dtype=torch.float32, disturb=False, **more)
    run.train()
    assert events[0]["loss"] == pytest.approx(0.5, abs=1e-3) and abs(events[0]["kl"]) < 1e-3
    assert events[-1]["kl"] > 0.1 and events[-1]["good_reward"] > 0.1 > 0 > events[-1]["bad_reward"]
    assert accuracy(run.policy, test) > 0.9
