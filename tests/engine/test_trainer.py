"""The loop: budgets, out of memory, stopping, resuming bit for bit after a kill at any update."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from luthier import parts
from luthier.conformance.tiny import tiny_rows
from luthier.conformance.training import trainer
from luthier.engine import checkpoints
from luthier.engine.budget import Budget
from luthier.engine.trainer import Batching, Saving
from luthier.errors import RunError

SFT = parts.build("objective", "sft")
FULL = parts.build("tuner", "full")
ADAMW = parts.build("optimizer", {"kind": "adamw", "lr": 1e-3})


def make(batching=None, **more):
    defaults = {"optimizer": ADAMW, "budget": Budget("updates", 5), "dtype": torch.float32}
    return trainer(SFT, FULL, tiny_rows(), batching or Batching(3, 40), **(defaults | more))


def weights(run):
    return {name: p.detach().clone() for name, p in run.masters.master.items()}


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


def test_losses_fall():
    events = []
    make(budget=Budget("updates", 30), observe=events.append).train()
    assert events[-1]["nll"] < events[0]["nll"]
    assert events[-1]["update"] == 30 and events[-1]["progress"] == 1.0


def test_running_out_of_memory_halves_the_micro_batch(monkeypatch):
    from luthier.models.policy import TokenPolicy

    hidden = TokenPolicy.hidden

    def limited(self, batch):
        if batch.ids.numel() > 50:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return hidden(self, batch)

    wanted = make(Batching(6, 50), dtype=torch.float64)
    wanted.train()
    monkeypatch.setattr(TokenPolicy, "hidden", limited)
    events = []
    run = make(Batching(6, 400), dtype=torch.float64, observe=events.append)
    run.train()
    assert run.micro.tokens == 50
    assert [e["tokens"] for e in events if e["event"] == "micro"] == [200, 100, 50]
    left, right = weights(wanted), weights(run)
    assert all(torch.allclose(left[n], right[n], rtol=1e-9, atol=1e-12) for n in left)


def test_memory_that_never_suffices_is_an_error(monkeypatch):
    from luthier.models.policy import TokenPolicy

    def never(self, batch):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(TokenPolicy, "hidden", never)
    with pytest.raises(RunError, match="Out of memory at update 1"):
        make().train()


def test_other_runtime_errors_pass_through(monkeypatch):
    from luthier.models.policy import TokenPolicy

    def broken(self, batch):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(TokenPolicy, "hidden", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        make().train()


def test_the_micro_batch_in_force_is_in_the_checkpoint(tmp_path):
    run = make(saving=Saving(tmp_path), stop_requested=lambda: True)
    run.micro.tokens = 25
    run.train()
    again = make(saving=Saving(tmp_path))
    assert again.resume() and again.micro.tokens == 25


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tuner", ["full", {"kind": "lora", "dropout": 0.3}])
def test_a_stop_anywhere_and_a_resume_change_no_bit(tmp_path, dtype, tuner):
    def run(saving, stop):
        return trainer(
            SFT,
            parts.build("tuner", tuner),
            tiny_rows(),
            Batching(3, 40),
            optimizer=ADAMW,
            budget=Budget("epochs", 2),
            dtype=dtype,
            saving=saving,
            stop_requested=stop,
        )

    whole = run(None, lambda: False)
    whole.train()
    saving = Saving(tmp_path)
    for _ in range(20):
        piece = run(saving, lambda: True)
        piece.resume()
        if piece.train() == "done":
            break
    assert piece.position.updates == whole.position.updates == 6
    assert same(weights(whole), weights(piece))


def test_another_recipe_may_not_resume(tmp_path):
    make(saving=Saving(tmp_path, fingerprint="one"), stop_requested=lambda: True).train()
    with pytest.raises(RunError, match="another recipe"):
        make(saving=Saving(tmp_path, fingerprint="two")).resume()


def test_nothing_to_train_is_an_error():
    from luthier.tuners.full import Full

    class Frozen(Full):
        def apply(self, model, plan):
            return model.requires_grad_(False)

    with pytest.raises(RunError, match="nothing to train"):
        trainer(SFT, Frozen(), tiny_rows(), Batching(3, 40))


CHILD = """
import sys, torch
from pathlib import Path
from luthier import parts
from luthier.engine.budget import Budget
from luthier.engine.trainer import Batching, Saving
from luthier.conformance.tiny import tiny_rows
from luthier.conformance.training import trainer
torch.set_num_threads(1)
run = trainer(parts.build("objective", "dft"), parts.build("tuner", "full"), tiny_rows(), Batching(3, 40),
              optimizer=parts.build("optimizer", {"kind": "adamw", "lr": 1e-3}), budget=Budget("updates", 40),
              dtype=torch.float32, saving=Saving(Path(sys.argv[1]), every=1))
run.resume()
print("ready", flush=True)
run.train()
torch.save({n: m.detach() for n, m in run.masters.master.items()}, sys.argv[2])
"""


def test_kill_minus_nine_at_a_random_moment_then_resume(tmp_path):
    def child(folder, out):
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path / folder), str(tmp_path / out)], stdout=subprocess.PIPE
        )

    def finish(folder, out):
        process = child(folder, out)
        process.communicate()
        assert process.returncode == 0

    finish("whole", "whole.pt")
    for attempt in range(2):
        process = child("killed", "killed.pt")
        assert process.stdout is not None and process.stdout.readline()
        deadline = time.monotonic() + 60
        wanted = 5 + 12 * attempt
        while time.monotonic() < deadline and process.poll() is None:
            newest = checkpoints.newest(tmp_path / "killed")
            if newest is not None and int(newest.name.split("-")[1]) >= wanted:
                break
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    finish("killed", "killed.pt")
    whole, killed = (torch.load(tmp_path / name) for name in ("whole.pt", "killed.pt"))
    assert same(whole, killed)


@pytest.mark.parametrize("every, saved", [(2, [2, 4, 5]), (None, [5]), ("auto", [1, 2, 3, 4, 5])])
def test_when_checkpoints_are_written(tmp_path, monkeypatch, every, saved):
    monkeypatch.setattr("luthier.engine.checkpoints.SAVE_SECONDS", -1.0)
    written = []
    save = checkpoints.save
    monkeypatch.setattr(
        checkpoints, "save", lambda folder, update, *rest: written.append(update) or save(folder, update, *rest)
    )
    make(saving=Saving(tmp_path, every=every)).train()
    assert written == saved


def test_finish_is_carried_out_once_on_the_weights_that_training_left(tmp_path):
    from luthier.tuners.full import Full

    class Doubles(Full):
        def finish(self, model):
            for parameter in model.parameters():
                parameter.data.mul_(2)

    def run():
        run = trainer(SFT, Doubles(), tiny_rows(), Batching(3, 40), optimizer=ADAMW, saving=Saving(tmp_path))
        run.resume()
        assert run.train() == "done"
        return {name: p.detach().clone() for name, p in run.policy.module.named_parameters()}

    assert same(run(), run())


def test_memory_that_runs_out_while_weights_move_is_never_tried_again(monkeypatch):
    def half_moved(self, scale, factor):
        next(iter(self.compute.values())).data.add_(1.0)
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr("luthier.engine.master_weights.MasterWeights.step", half_moved)
    run = make(Batching(6, 400))
    with pytest.raises(RunError, match="Update 1 broke off while the weights were being moved"):
        run.train()
    assert run.micro.tokens == 400


def test_a_budget_below_one_record_is_an_error():
    with pytest.raises(RunError, match="less than one record"):
        make(budget=Budget("epochs", 0.001)).train()
