"""Hidden states in a file are those that the reference gives, for any layout and any of a row's targets."""

import errno
from dataclasses import replace

import numpy
import pytest
import torch

from luthier import parts
from luthier.conformance.base import apart
from luthier.conformance.tiny import tiny_model, tiny_rows
from luthier.conformance.training import trained
from luthier.data.batches import collate
from luthier.engine.assemble import frozen_bytes, tuned_policy
from luthier.engine.budget import Budget
from luthier.engine.hidden_cache import CachedReference, HiddenStateCache
from luthier.engine.trainer import Batching
from luthier.errors import RunError
from luthier.models.policy import Reference, TokenPolicy
from luthier.objectives.sum import build_objective
from luthier.types import Stream

ROWS = tiny_rows()


def computed(folder, module, rows=ROWS):
    states = HiddenStateCache(folder / "states" / "key", rows, 32, next(module.parameters()).dtype)
    assert not states.known
    states.compute(Reference(TokenPolicy(module)), rows, 40, lambda done, total: None)
    return states


@pytest.mark.parametrize("layout, side", [("padded", "right"), ("padded", "left"), ("packed", "right")])
@pytest.mark.parametrize("dtype, most", [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_they_are_those_of_the_model(tmp_path, layout, side, dtype, most):
    module = tiny_model(dtype)
    states = computed(tmp_path, module)
    batch = collate(ROWS, layout, side=side)
    assert states.known
    cached, computed_anew = states.at(batch), Reference(TokenPolicy(module)).hidden(batch)
    assert cached.shape == computed_anew.shape and cached.dtype == dtype
    assert float((cached - computed_anew).abs().max()) < most < float(computed_anew.abs().max())


def test_a_selector_may_leave_some_targets(tmp_path):
    module = tiny_model()
    states = computed(tmp_path, module)
    fewer = []
    for row in ROWS:
        weights = row.streams["weights"].values * (numpy.arange(len(row)) % 3 == 0)
        fewer.append(replace(row, streams={"weights": Stream(weights, "token")}))
    batch = collate(fewer, "packed")
    computed_anew = Reference(TokenPolicy(module)).hidden(batch)
    assert 0 < len(computed_anew) < sum(row.targets for row in ROWS) // 2
    assert float((states.at(batch) - computed_anew).abs().max()) < 1e-6


def test_a_batch_without_targets_has_none(tmp_path):
    states = computed(tmp_path, tiny_model())
    batch = collate([replace(row, streams={"weights": Stream(numpy.zeros(len(row)), "token")}) for row in ROWS])
    assert states.at(batch).shape == (0, 32)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(self, path, *_):
        path.write_bytes(b"a part of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(HiddenStateCache, "_write", full)
    with pytest.raises(RunError, match=r"No space left on the disk while writing .*states"):
        computed(tmp_path, tiny_model())
    assert not list((tmp_path / "states").iterdir())


def test_half_a_file_is_not_known(tmp_path):
    states = computed(tmp_path, tiny_model())
    states.file.write_bytes(states.file.read_bytes()[:-8])
    assert not states.known
    assert [path.name for path in states.file.parent.iterdir()] == ["key"]


@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_training_is_that_with_the_model_asked_at_every_update(tmp_path, tuner, monkeypatch):
    """The states are taken before surgery; of the model as it was, full fine-tuning then keeps the head alone."""
    objective = build_objective({"kind": "asft", "kl_weight": 2.0})
    asked = trained(objective, parts.build("tuner", tuner), Batching(4, 60), budget=Budget("updates", 3))
    states = computed(tmp_path, tiny_model())
    bound = []

    def recalling(module, *arguments, **more):
        bound.append(tuned_policy(module, *arguments, **more, states=states))
        return bound[-1]

    monkeypatch.setattr("luthier.conformance.training.tuned_policy", recalling)
    recalled = trained(objective, parts.build("tuner", tuner), Batching(4, 60), budget=Budget("updates", 3))
    (policy,) = bound
    assert isinstance(policy.references["initial"], CachedReference)
    assert frozen_bytes(policy) == (61 * 32 * 8 if tuner == "full" else 0)
    assert apart(asked, recalled) < 1e-6
    free = trained(build_objective("dft"), parts.build("tuner", tuner), Batching(4, 60), budget=Budget("updates", 3))
    assert apart(asked, free) > 1e-3
