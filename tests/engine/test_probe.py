"""Probes change nothing, measure at every k-th update, and are resumed with the training."""

import numpy
import pytest
import torch

from luthier import parts
from luthier.conformance.tiny import tiny_model, tiny_rows
from luthier.conformance.training import trainer
from luthier.engine.budget import Budget
from luthier.engine.probe import LossCurves, assert_unchanged
from luthier.engine.trainer import Batching, Saving
from luthier.errors import RunError
from luthier.models.policy import TokenPolicy

ADAMW = parts.build("optimizer", {"kind": "adamw", "lr": 1e-3})


def make(probes, **more):
    defaults = {"optimizer": ADAMW, "budget": Budget("updates", 5), "dtype": torch.float32, "probes": probes}
    tuner = parts.build("tuner", {"kind": "lora", "dropout": 0.3})
    return trainer(parts.build("objective", "sft"), tuner, tiny_rows(), Batching(3, 40), **(defaults | more))


def weights(run):
    return {name: master.detach().clone() for name, master in run.masters.master.items()}


def test_a_probe_changes_no_bit_and_sees_the_start_and_every_kth_update():
    plain, probe = make([]), LossCurves(tiny_rows(), every=2)
    watched = make([probe])
    plain.train()
    watched.train()
    left, right = weights(plain), weights(watched)
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert probe.updates == [0, 2, 4]
    column = probe.column()
    assert len(column) == 8 and all(values.shape == (3,) for values in column.values())
    assert watched.position.looked_rows == 24 and plain.position.looked_rows == 0


def test_losses_are_of_each_record_alone():
    rows, model = tiny_rows(), tiny_model()
    probe = LossCurves(rows, every=1, tokens=50)
    from luthier.engine.distributed import World

    probe.measure(TokenPolicy(model), 0, World())
    for row in rows:
        ids = torch.from_numpy(row.ids).long()[None]
        with torch.no_grad():
            logp = model(input_ids=ids).logits[0].log_softmax(-1)
        at = [t for t in range(1, len(row)) if row.streams["weights"].values[t] != 0]
        wanted = -sum(float(logp[t - 1, ids[0, t]]) for t in at) / len(at)
        assert abs(probe.column()[row.id][0] - wanted) < 1e-5


def test_a_resumed_training_has_the_whole_trajectory(tmp_path):
    whole = LossCurves(tiny_rows(), every=1)
    make([whole]).train()
    saving, calls = Saving(tmp_path), iter((False, True))
    make([LossCurves(tiny_rows(), every=1)], saving=saving, stop_requested=lambda: next(calls)).train()
    again = LossCurves(tiny_rows(), every=1)
    run = make([again], saving=saving)
    run.resume()
    run.train()
    assert again.updates == whole.updates == [0, 1, 2, 3, 4, 5]
    for name, values in whole.column().items():
        assert numpy.array_equal(values, again.column()[name])


def test_a_probe_that_writes_is_refused_and_generators_are_put_back():
    class Writes(LossCurves):
        def measure(self, policy, update, world):
            next(policy.module.parameters()).mul_(1.0)
            return super().measure(policy, update, world)

    with pytest.raises(RunError, match="may only read"):
        make([Writes(tiny_rows(), every=1)]).train()
    module = tiny_model().train()
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    with assert_unchanged(module):
        assert not module.training
        torch.rand(5)
    assert module.training and torch.equal(torch.rand(2), wanted)
