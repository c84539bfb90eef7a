"""What parts remember: by name, apart for equal parts, and read back from checkpoints that numbered the parts."""

import json

import torch
from safetensors.torch import load_file, save_file

from luthier import parts
from luthier.conformance.tiny import tiny_rows
from luthier.conformance.training import trainer
from luthier.engine import checkpoints
from luthier.engine.budget import Budget
from luthier.engine.checkpoints import STATE, Saving
from luthier.engine.micro_batches import Batching
from luthier.objectives.base import TokenObjective
from luthier.objectives.sum import WeightedSum
from luthier.update import PartNames, Update

FULL = parts.build("tuner", "full")


class Seen:
    def __init__(self):
        self.updates = torch.zeros(1)

    def state_dict(self):
        return {"updates": self.updates}

    def load_state_dict(self, state):
        self.updates = state["updates"].clone()


class Counted(TokenObjective):
    """Its loss grows with the number of updates that it remembers."""

    def start(self, policy):
        return Seen()

    def token_loss(self, view):
        return -view.logprob * (1 + float(view.update.state_of(self).updates))

    def after_step(self, policy, update):
        update.state_of(self).updates += 1


class Last(parts.build("selector", "random").__class__):
    """Keeps half of each pool and remembers how many records that were."""

    def start(self, policy):
        return Seen()

    def commit(self, kept):
        kept.state.updates += len(kept.names)


def run_of(saving=None, stop=lambda: False):
    both = WeightedSum(members=((Counted(), 0.5), (Counted(), 0.5)))
    adamw = parts.build("optimizer", {"kind": "adamw", "lr": 1e-3})
    more = {"budget": Budget("updates", 4), "optimizer": adamw, "selector": Last()}
    return trainer(both, FULL, tiny_rows(), Batching(4, 60), saving=saving, stop_requested=stop, **more)


def test_parts_are_named_by_slot_kind_and_position():
    assert list(run_of().states.by_name) == [
        "objective/test_part_states/0",
        "objective/test_part_states/1",
        "tuner/full/0",
        "selector/test_part_states/0",
    ]


def test_equal_parts_have_a_state_each():
    run = run_of()
    run.train()
    members = [part for part, _ in run.parts.objective.members]
    assert members[0] == members[1] and [float(run.states.of(part).updates) for part in members] == [4.0, 4.0]


def test_a_checkpoint_that_numbers_its_parts_is_resumed_bit_for_bit(tmp_path):
    whole = run_of()
    whole.train()
    calls = iter((False, True))
    run_of(Saving(tmp_path), lambda: next(calls)).train()
    file = checkpoints.newest(tmp_path) / STATE
    tensors = load_file(file)
    for number, name in enumerate(whole.states.by_name):
        if f"state/{name}/updates" in tensors:
            tensors[f"state/{number}/updates"] = tensors.pop(f"state/{name}/updates")
    assert {name for name in tensors if name.startswith("state/")} == {f"state/{n}/updates" for n in (0, 1, 3)}
    save_file(tensors, file)
    meta = file.with_name(checkpoints.META)  # older checkpoints have no digest
    meta.write_text(json.dumps({**json.loads(meta.read_text()), checkpoints.DIGEST: None}))
    again = run_of(Saving(tmp_path))
    assert again.resume() and float(again.selection.state.updates) > 0
    again.train()
    assert all(torch.equal(master, again.masters.master[name]) for name, master in whole.masters.master.items())


def test_what_a_part_prepares_is_found_under_its_name_though_nobody_named_it():
    first, second = Counted(), Counted()
    update = Update(1, 0, names=PartNames([("objective/counted/0", first)]))
    update.set_prepared(first, "first")
    update.set_prepared(second, "second")
    assert (update.prepared_by(first), update.prepared_by(second)) == ("first", "second")
    assert update.names.of(first) == "objective/counted/0" and update.names.of(second).startswith("unnamed/")
