"""Two gloo ranks give the gradient of one process, for every objective, also when one rank has no batch."""

import pytest

from luthier import parts
from luthier.conformance.base import apart
from luthier.conformance.training import trained
from luthier.engine.distributed import World
from luthier.engine.trainer import Batching
from support.ranks import run_ranks

CHILD = """
import sys, torch
from luthier import parts
from luthier.engine.distributed import World
from luthier.engine.trainer import Batching
from luthier.conformance.tiny import tiny_rows
from luthier.conformance.training import trained
torch.set_num_threads(1)
world = World.join()
reports = {}
for entry in parts.catalogue("objective"):
    for label, batching in (("split", Batching(8, 40)), ("one batch", Batching(8, 10_000))):
        objective = parts.build("objective", entry.name)
        reports[f"{entry.name}/{label}"] = trained(objective, parts.build("tuner", "full"), batching, world=world)
torch.save(reports, f"{sys.argv[1]}/{world.rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_ranks(CHILD, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", [entry.name for entry in parts.catalogue("objective")])
def test_two_ranks_equal_one(ranks, name):
    whole = trained(parts.build("objective", name), parts.build("tuner", "full"), Batching(8, 10_000))
    for label in ("split", "one batch"):
        for rank in ranks:
            assert apart(whole, rank[f"{name}/{label}"]) < 1e-9


def test_alone_nothing_is_sent():
    world = World.join()
    assert world == World(0, 1)
    assert world.sum_numbers({"a": 1.0}) == {"a": 1.0}
    assert world.share([1, 2, 3]) == [1, 2, 3]
    assert World(1, 2).share([1, 2, 3]) == [2]


APART = """
import sys, torch
from pathlib import Path
from luthier import parts
from luthier.engine.budget import Budget
from luthier.engine.distributed import World
from luthier.engine.trainer import Batching, Saving
from luthier.engine.update import NotFinite
from luthier.objectives.base import TokenObjective
from luthier.conformance.tiny import tiny_rows
from luthier.conformance.training import trainer
torch.set_num_threads(1)
world = World.join()
folder = Path(sys.argv[1])

class Poison(TokenObjective):
    def token_loss(self, view):
        return -view.logprob * (float("nan") if world.rank == 1 and view.update.index == 3 else 1.0)

def run(objective, name, **more):
    return trainer(objective, parts.build("tuner", "full"), tiny_rows(), Batching(8, 40), world=world,
                   saving=Saving(folder / name), **more)

sft, reports = parts.build("objective", "sft"), {}
calls = iter(range(100))
stopped = run(sft, "stop", budget=Budget("updates", 9), stop_requested=lambda: world.rank == 1 and next(calls) == 1)
reports["stop"] = (stopped.train(), stopped.position.updates)
timed = run(sft, "seconds", budget=Budget("seconds", 0.3))
timed.position.seconds = 0.2 * world.rank
reports["seconds"] = (timed.train(), timed.position.updates > 0)
due = run(sft, "due", budget=Budget("updates", 3))
due.checkpoints._saved_at -= 1000 * world.rank
reports["due"] = (due.train(), due.position.updates)
try:
    run(Poison(), "poison", budget=Budget("updates", 9)).train()
except NotFinite as error:
    reports["poison"] = str(error)
torch.save(reports, folder / f"{world.rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_ranks_stop_save_and_fail_together(tmp_path):
    first, second = run_ranks(APART, tmp_path)
    assert first == second
    assert first["stop"] == ("stopped", 2) and first["due"] == ("done", 3) and first["seconds"] == ("done", True)
    assert "loss of update 3" in first["poison"]
    assert [path.name for path in (tmp_path / "poison").iterdir()] == ["update-00000002"]
