"""The phases of an update: order, global counts, hooks, errors that name records."""

import pytest
import torch

from luthier import parts
from luthier.conformance.base import apart
from luthier.conformance.tiny import tiny_rows
from luthier.conformance.training import trained, trainer
from luthier.engine.trainer import Batching
from luthier.engine.update import NotFinite
from luthier.errors import RunError
from luthier.objectives.base import TokenObjective
from luthier.tuners.full import Full
from luthier.types import Term

EVENTS: list[str] = []


class Spy(TokenObjective):
    def prepare(self, policy, update):
        EVENTS.append(f"prepare {len(update.batches)}")

    def token_loss(self, view):
        if view.update.counts["targets"] != sum(row.targets for row in tiny_rows()):
            raise AssertionError("counts are global and known before the first backward")
        EVENTS.append("loss")
        return -view.logprob

    def update_terms(self, policy, update):
        EVENTS.append("update terms")
        return [Term(policy.module.get_output_embeddings().weight.square().sum(), None, 0.5)]

    def after_step(self, policy, update):
        EVENTS.append("after step")


class SpyTuner(Full):
    def before_step(self, model, update):
        weight = update.gradient("model.embed_tokens.weight")
        EVENTS.append("before step")
        weight.mul_(2.0)

    def after_step(self, model, update):
        EVENTS.append("tuner after step")

    def finish(self, model):
        EVENTS.append("finish")


def test_phases_come_in_one_order():
    EVENTS.clear()
    trained(Spy(), SpyTuner(), Batching(8, 40))
    losses = EVENTS.count("loss")
    assert losses > 1
    wanted = [f"prepare {losses}", *["loss"] * losses, "update terms", "before step", "after step", "tuner after step"]
    assert [*wanted, "finish"] == EVENTS


def test_before_step_sees_and_may_change_the_complete_gradient():
    sft = parts.build("objective", "sft")
    plain, doubled = (trained(sft, tuner, Batching(8, 40)) for tuner in (Full(), SpyTuner()))
    assert torch.allclose(
        2 * plain["model.embed_tokens.weight"], doubled["model.embed_tokens.weight"], rtol=1e-9, atol=1e-12
    )
    assert torch.equal(plain["model.norm.weight"], doubled["model.norm.weight"])


def test_update_terms_are_added_once_whatever_the_split():
    assert apart(trained(Spy(), Full(), Batching(8, 10_000)), trained(Spy(), Full(), Batching(8, 1))) < 1e-9


class Poison(TokenObjective):
    def token_loss(self, view):
        return -view.logprob * torch.where(view.targets == 7, float("nan"), 1.0)


def test_not_a_number_names_the_records_and_saves_the_state_before(tmp_path):
    from luthier.engine import checkpoints
    from luthier.engine.trainer import Saving

    run = trainer(Poison(), Full(), tiny_rows(), Batching(8, 1), saving=Saving(tmp_path))
    before = {name: p.detach().clone() for name, p in run.masters.master.items()}
    with pytest.raises(NotFinite, match=r"Records in the batch: record-\d\.") as caught:
        run.train()
    named = str(caught.value).split("batch: ")[1].split(".")[0]
    row = next(row for row in tiny_rows() if row.id == named)
    assert 7 in row.ids
    newest = checkpoints.newest(tmp_path)
    assert newest is not None
    saved = checkpoints.load(newest)
    assert all(torch.equal(saved.tensors[f"master/{name}"], p) for name, p in before.items())


def test_no_target_names_the_update():
    with pytest.raises(RunError, match="no target token"):
        trained(parts.build("objective", "sft"), Full(), Batching(8, 100), rows=tiny_rows(targets=False))


def test_clipping_bounds_the_norm_of_the_whole_update():
    from luthier.conformance.training import GradientDescent

    events = []
    sft = parts.build("objective", "sft")
    free = trained(sft, Full(), Batching(8, 40), observe=events.append)
    norm = torch.linalg.vector_norm(torch.stack([t.norm() for t in free.values()]))
    assert abs(events[0]["gradient_norm"] - float(norm)) < 1e-9 * float(norm)
    clipped = trained(sft, Full(), Batching(8, 40), optimizer=GradientDescent(clip=0.01))
    assert abs(float(torch.linalg.vector_norm(torch.stack([t.norm() for t in clipped.values()]))) - 0.01) < 1e-6
