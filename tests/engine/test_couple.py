"""Losses in which records meet: the two passes equal the whole update, under any split, on two ranks, with dropout."""

from typing import ClassVar

import pytest
import torch
from torch import nn

from luthier import parts
from luthier.conformance.base import apart
from luthier.conformance.tiny import TINY_MODELS, TinyModel, seeded, tiny_rows
from luthier.conformance.training import trained, trainer
from luthier.engine.couple import couple, repeatable
from luthier.engine.distributed import World
from luthier.engine.trainer import Batching
from luthier.engine.update import NotFinite, count
from luthier.errors import RunError
from luthier.objectives.base import CoupledObjective
from luthier.objectives.contrastive.siglip import SigLIP
from luthier.objectives.sum import WeightedSum
from luthier.tuners.full import Full
from luthier.types import Term
from luthier.update import Update
from luthier.vision._encoders import DualEncoder
from luthier.vision.digits import CLASSES
from support.ranks import run_ranks

EXACT = 1e-12
SPLITS = (Batching(8, 1), Batching(8, 3), Batching(8, 5), Batching(8, 3, "packed"))


class Spread(CoupledObjective):
    """Of a language model: the variance over records of their mean log-likelihood."""

    def features(self, policy, batch):
        rows, columns = batch.targets()
        targets, owner = batch.ids[rows, columns], batch.example_of[rows, columns]
        logprob = policy.head.map(
            policy.hidden(batch), lambda s, z: z.log_softmax(-1).gather(1, targets[s, None])[:, 0]
        )
        sums = logprob.new_zeros(len(batch.examples)).index_add(0, owner, logprob)
        return {"mean": sums / owner.bincount(minlength=len(batch.examples))}

    def coupled_loss(self, features, streams, update):
        mean = features["mean"]
        update.meter("mean", mean.detach().sum(), "records")
        return [Term((mean - mean.mean()).square().sum(), "records")]


SUMS = (
    Spread(),
    WeightedSum(
        members=((parts.build("objective", "sft"), 0.7), (Spread(), 0.3), (parts.build("objective", "dft"), 1.0))
    ),
)


@pytest.mark.parametrize("objective", [SigLIP(), SigLIP(same="label"), *SUMS], ids=["pair", "label", "text", "sum"])
def test_any_split_equals_the_whole(objective):
    split = (
        SPLITS if objective.MODALITY == "contrastive" else (Batching(8, 1), Batching(8, 60), Batching(8, 40, "packed"))
    )
    losses = []
    whole = trained(objective, Full(), Batching(8, 10_000), observe=losses.append)
    for batching in split:
        other = trained(objective, Full(), batching, observe=losses.append)
        assert apart(whole, other) < EXACT
    for event in losses:
        assert abs(event["loss"] - losses[0]["loss"]) < EXACT * abs(losses[0]["loss"])
        assert abs(event.get("mean", 0.0) - losses[0].get("mean", 0.0)) < 1e-9


@pytest.mark.parametrize("records", [10_000, 3])
def test_the_loss_of_both_ways_is_that_of_before_they_were_told_apart(records):
    losses = []
    trained(SigLIP(), Full(), Batching(8, records), observe=losses.append)
    assert losses[0]["loss"] == pytest.approx(4.398656036219409, rel=1e-12)


def test_naive_micro_batches_would_be_wrong():
    """The loss of each micro-batch by itself, summed, is not the loss: what two passes are for."""

    class Naive(SigLIP):
        def terms(self, policy, batch, update):
            return SigLIP.coupled_loss(self, SigLIP.features(self, policy, batch), {}, update)

    whole = trained(SigLIP(), Full(), Batching(8, 10_000))
    run = trainer(SigLIP(), Full(), TINY_MODELS["contrastive"].rows(8, 0), Batching(8, 2))
    naive = _gradient_by_hand(run, lambda pieces: sum(_loss_of(piece) for piece in pieces))
    assert apart({n: -t for n, t in whole.items()}, naive) > 0.05


def _loss_of(features):
    (term,) = SigLIP().coupled_loss(features, {}, Update(1, 0, counts={"records": 8.0}))
    return term.total / 8


def _gradient_by_hand(run, loss_of):
    """Gradient of `loss_of` the micro-batches' features, all graphs kept at once."""
    update = _update(run)
    pieces = []
    for batch in update.batches:
        with repeatable(update, batch):
            pieces.append(SigLIP().features(run.policy, batch))
    loss_of(pieces).backward()
    return {name: p.grad.clone() for name, p in run.masters.compute.items()}


def _update(run):
    from luthier.data.batches import collate, micro_batches

    rows = run.source.draw(run.position, 8).rows
    return Update(1, 0, batches=[collate(micro) for micro in micro_batches(rows, run.micro.tokens, "padded")])


def test_dropout_is_the_same_in_both_passes(monkeypatch):
    monkeypatch.setitem(TINY_MODELS, "contrastive", _with(lambda: DualEncoder(8, CLASSES, dropout=0.5)))
    rows = TINY_MODELS["contrastive"].rows(8, 0)
    run = trainer(SigLIP(), Full(), rows, Batching(8, 3))
    run.policy.module.train()
    whole = lambda pieces: _loss_of({n: torch.cat([piece[n] for piece in pieces]) for n in pieces[0]})  # noqa: E731
    wanted = _gradient_by_hand(run, whole)
    change = trained(SigLIP(), Full(), Batching(8, 3), rows=rows)
    assert apart(wanted, {name: -t for name, t in change.items()}) < EXACT


def test_dropout_leaves_other_draws_alone():
    run = trainer(SigLIP(), Full(), TINY_MODELS["contrastive"].rows(8, 0), Batching(8, 3))
    update = _update(run)
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    with repeatable(update, update.batches[0]):
        first = torch.rand(2)
    assert torch.equal(torch.rand(2), wanted)
    with repeatable(update, update.batches[1]):
        assert not torch.equal(torch.rand(2), first)
    with repeatable(update, update.batches[0]):
        assert torch.equal(torch.rand(2), first)


def _with(make):
    modality = TINY_MODELS["contrastive"]
    return TinyModel(lambda dtype, seed: seeded(make, dtype, seed), modality.policy, modality.rows)


CHILD = """
import sys, torch
from luthier import parts
from luthier.engine.distributed import World
from luthier.engine.trainer import Batching
from luthier.objectives.contrastive.siglip import SigLIP
from luthier.conformance.training import trained
torch.set_num_threads(1)
world = World.join()
full, reports = parts.build("tuner", "full"), {}
for label, batching in (("split", Batching(8, 3)), ("one batch", Batching(8, 10_000))):
    events = []
    reports[label] = trained(SigLIP(same="label"), full, batching, world=world, observe=events.append)
    reports[label + "/loss"] = (events[0]["loss"], events[0]["text_found"])
torch.save(reports, f"{sys.argv[1]}/{world.rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_ranks_equal_one(tmp_path):
    events = []
    whole = trained(SigLIP(same="label"), Full(), Batching(8, 10_000), observe=events.append)
    for rank in run_ranks(CHILD, tmp_path):
        for label in ("split", "one batch"):
            assert apart(whole, rank[label]) < EXACT
            loss, hits = rank[f"{label}/loss"]
            assert abs(loss - events[0]["loss"]) < 1e-12 and abs(hits - events[0]["text_found"]) < 1e-12


class Normed(DualEncoder):
    def __init__(self):
        super().__init__(8, CLASSES)
        self.image = nn.Sequential(self.image, nn.BatchNorm1d(8))


def test_batch_statistics_refuse_a_split(monkeypatch):
    monkeypatch.setitem(TINY_MODELS, "contrastive", _with(Normed))
    with pytest.raises(RunError, match=r"`image\.1` normalises by the statistics of each forward"):
        trained(SigLIP(), Full(), Batching(8, 3))
    trained(SigLIP(), Full(), Batching(8, 10_000))  # whole: nothing to refuse


class Sums(Spread):
    def features(self, policy, batch):
        return {"mean": super().features(policy, batch)["mean"].sum(0, keepdim=True)}


def test_features_are_one_per_record():
    with pytest.raises(RunError, match=r"gave `mean` of shape \(1,\) for 8 records"):
        trained(Sums(), Full(), Batching(8, 10_000))


class Poison(Spread):
    def coupled_loss(self, features, streams, update):
        return [Term(features["mean"].sum() * float("nan"), "records")]


def test_not_a_number_stops_before_the_model_is_touched():
    run = trainer(Poison(), Full(), tiny_rows(), Batching(8, 60))
    before = {name: p.detach().clone() for name, p in run.masters.master.items()}
    with pytest.raises(NotFinite, match="record-"):
        run.train()
    assert all(torch.equal(before[name], p) for name, p in run.masters.master.items())


class Learned(SigLIP):
    """Reads a parameter inside the loss, where no feature carries it."""

    HELD: ClassVar[list] = []

    def coupled_loss(self, features, streams, update):
        (term,) = super().coupled_loss(features | {"bias": features["bias"].detach()}, streams, update)
        return [Term(term.total * self.HELD[0].square(), term.unit)]


def test_a_parameter_within_the_loss_gets_its_gradient_once():
    gradients = []
    for batching in (Batching(8, 10_000), Batching(8, 3)):
        run = trainer(Learned(), Full(), TINY_MODELS["contrastive"].rows(8, 0), batching)
        Learned.HELD[:] = [run.policy.module.logit_bias]
        update = _update(run)
        update.counts = count(Learned(), update.batches, World())
        couple(run.policy, Learned(), update, World())
        gradients.append(run.policy.module.logit_bias.grad)
    assert float(gradients[0]) != 0 and torch.allclose(*gradients, rtol=EXACT)
