"""The families: sums share a pass, sequences see whole records, draws are keyed, shapes are checked."""

from typing import ClassVar

import pytest
import torch

from luthier import parts
from luthier.conformance.base import apart
from luthier.conformance.tiny import tiny_rows
from luthier.conformance.training import trained, trainer
from luthier.data.batches import collate
from luthier.engine.trainer import Batching
from luthier.errors import RecipeError
from luthier.objectives._draws import position_keys
from luthier.objectives.base import SequenceObjective, TokenObjective, Update
from luthier.objectives.sum import WeightedSum, build_objective, reads_of
from luthier.select.base import Selector
from support.oracle import view_of

WHOLE = Batching(8, 10_000)
LINEAR = 1e-6  # transformers' RMSNorm computes in float32: scaling a loss scales its gradient to that accuracy


def full():
    return parts.build("tuner", "full")


class Likelihood(SequenceObjective):
    """Negative log-likelihood of whole records, per record."""

    def sequence_loss(self, view):
        return -view.logprob / view.count


class Scalar(TokenObjective):
    def token_loss(self, view):
        return -view.logprob.mean()


class Noisy(TokenObjective):
    def token_loss(self, view):
        return -view.logprob * view.uniform(2)[:, 1].to(view.logprob.dtype)


class ByWeight(TokenObjective):
    UNIT: ClassVar[str] = "weights"

    def token_loss(self, view):
        return -view.logprob


def test_a_sum_is_the_sum_of_its_gradients_in_one_pass(monkeypatch):
    passes = []
    from luthier.models.policy import TokenPolicy

    hidden = TokenPolicy.hidden
    monkeypatch.setattr(TokenPolicy, "hidden", lambda self, batch: passes.append(1) or hidden(self, batch))
    spec = [{"objective": {"kind": "sft"}, "coefficient": 0.7}, {"objective": {"kind": "dft"}, "coefficient": 0.3}]
    both = trained(build_objective(spec), full(), WHOLE)
    assert len(passes) == 1
    sft, dft = (trained(parts.build("objective", kind), full(), WHOLE) for kind in ("sft", "dft"))
    assert apart({n: 0.7 * sft[n] + 0.3 * dft[n] for n in sft}, both) < LINEAR


def test_a_sum_reads_what_its_members_read():
    spec = [{"objective": {"kind": "sft"}, "coefficient": 1.0}, {"objective": {"kind": "asft"}, "coefficient": 1.0}]
    assert reads_of(build_objective(spec)) == ("logits:initial",)


def test_token_and_sequence_objectives_add_up():
    mixed = WeightedSum(members=((parts.build("objective", "sft"), 1.0), (Likelihood(), 2.0)))
    events, alone = [], []
    trained(mixed, full(), WHOLE, observe=events.append)
    trained(parts.build("objective", "sft"), full(), WHOLE, observe=alone.append)
    assert events[0]["nll"] == pytest.approx(alone[0]["nll"])
    sft, likelihood = trained(parts.build("objective", "sft"), full(), WHOLE), trained(Likelihood(), full(), WHOLE)
    assert apart({n: sft[n] + 2 * likelihood[n] for n in sft}, trained(mixed, full(), WHOLE)) < LINEAR


@pytest.mark.parametrize("objective", [Likelihood(), Noisy(), ByWeight()])
@pytest.mark.parametrize("batching", [Batching(8, 1), Batching(8, 10_000, "padded", "left"), Batching(8, 40, "packed")])
def test_no_split_changes_the_gradient(objective, batching):
    assert apart(trained(objective, full(), WHOLE), trained(objective, full(), batching)) < 1e-9


def test_a_record_drawn_twice_counts_twice():
    rows = tiny_rows(3)
    twice, once = collate(rows + rows), collate(rows)
    sft = parts.build("objective", "sft")
    assert {name: 2 * count for name, count in sft.units(once).items()} == sft.units(twice)
    pairs = [type(row)(f"{row.id}/{side}", row.ids, row.streams, record=row.id) for row in rows for side in "ab"]
    assert [sft.units(collate(drawn))["records"] for drawn in (pairs, pairs + pairs)] == [3, 6]


def test_dividing_by_weights_differs_from_dividing_by_targets():
    ratio = sum(row.targets for row in tiny_rows()) / sum(
        float(row.streams["weights"].values[1:].sum()) for row in tiny_rows()
    )
    sft, by_weight = (trained(o, full(), WHOLE) for o in (parts.build("objective", "sft"), ByWeight()))
    assert apart({n: ratio * t for n, t in sft.items()}, by_weight) < LINEAR


def test_a_scalar_loss_is_refused_in_words():
    with pytest.raises(RecipeError, match="token_loss returned"):
        trained(Scalar(), full(), WHOLE)


def test_draws_are_uniform_and_keyed():
    def draws(seed, index, key=123):
        view = view_of(parts.build("objective", "sft"), update=Update(index, seed))
        view.keys = torch.tensor([key])
        return view.uniform(4000)[0]

    one = draws(0, 1)
    assert torch.equal(one, draws(0, 1))
    for other in (draws(1, 1), draws(0, 2), draws(0, 1, key=124)):
        assert not torch.equal(one, other)
        assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.06
    assert float(one.min()) >= 0.0 and float(one.max()) < 1.0
    assert abs(float(one.mean()) - 0.5) < 0.02 and abs(float(one.var()) - 1 / 12) < 0.005


def test_keys_depend_on_record_and_position_only():
    rows = tiny_rows()
    together, alone = collate(rows, "packed"), collate(rows[2:3])
    picked = together.example_of[together.targets()] == 2
    assert torch.equal(position_keys(together)[picked], position_keys(alone))
    assert len(position_keys(together).unique()) == len(position_keys(together))


class Counting(TokenObjective):
    """An objective with state: it counts its updates."""

    def start(self, policy):
        return State()

    def token_loss(self, view):
        return -view.logprob * (1 + view.update.state_of(self).seen)

    def after_step(self, policy, update):
        update.state_of(self).seen += 1


class State:
    def __init__(self):
        self.seen = torch.zeros(())

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, tensors):
        self.seen = tensors["seen"]


def test_state_lives_in_checkpoints(tmp_path):
    from luthier.engine.budget import Budget
    from luthier.engine.trainer import Saving

    def run(stop, updates=3):
        made = trainer(
            Counting(),
            full(),
            tiny_rows(),
            Batching(3, 40),
            budget=Budget("updates", updates),
            saving=Saving(tmp_path),
            stop_requested=stop,
        )
        resumed = made.resume()
        made.train()
        return made, resumed

    run(lambda: True)
    again, resumed = run(lambda: False)
    assert resumed and float(next(iter(again.states.by_name.values())).seen) == 3


@pytest.mark.parametrize(
    "base, old, new",
    [
        (TokenObjective, "moves", "has_gradient"),
        (TokenObjective, "scope", "micro_batch_context"),
        (type(full()), "around", "micro_batch_context"),
        (Selector, "look", "features"),
    ],
)
def test_a_hook_under_its_old_name_is_refused(base, old, new):
    with pytest.raises(RecipeError, match=f"`{old}`, which is not called.*\n.*`{new}`"):
        type("Mine", (base,), {"__module__": __name__, old: lambda self, *more: True})
