"""Two gloo ranks give the gradient of one process, for every objective, also when one rank has no batch."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from luthier import parts
from luthier.engine.distributed import World
from luthier.engine.trainer import Batching
from luthier.steps.conformance import apart, trained

CHILD = """
import sys, torch
from luthier import parts
from luthier.engine.distributed import World
from luthier.engine.trainer import Batching
from luthier.steps.conformance import tiny_rows, trained
torch.set_num_threads(1)
world = World.join()
found = {}
for entry in parts.catalogue("objective"):
    for label, batching in (("split", Batching(8, 40)), ("one batch", Batching(8, 10_000))):
        objective = parts.build("objective", entry.name)
        found[f"{entry.name}/{label}"] = trained(objective, parts.build("tuner", "full"), batching, world=world)
torch.save(found, f"{sys.argv[1]}/{world.rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], env={**shared, "RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=90) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


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
