"""Memory stays where it is: 2,000 updates on nano, and 300 rollouts.

Measured is the resident memory of a process that does nothing else (VmRSS), after a garbage collection, as the
median of five looks 20 updates apart: what the allocator holds back goes up and down by some hundred kilobytes with
the lengths of rows. 2 % of it is some 8 MB, so 5 KB forgotten per update are seen. What is forgotten in small pieces
shows sooner in the number of objects that Python's garbage collector knows: one per update would be 1,800.

Looks are compared from the second checkpoint on. The first one leaves 229 objects, once: torch keeps the Python object
of every storage it was asked for (152 of nano's masters and moments), and ctypes two types for every size of tensor
that safetensors made an array of.
"""

import json
import os
import statistics
import subprocess
import sys

import pytest

CHILD = """
import gc, json, sys
from pathlib import Path
from luthier.engine import usage
from luthier.recipe import load_recipe
from luthier.steps import run_recipe
from luthier.runs.journal import Journal

seen, tell = [], Journal.event

def told(self, event):
    update = event.get("update") if "loss" in event else None
    tell(self, event)
    if update is not None and update % 20 == 0:
        gc.collect()
        seen.append((update, usage.resident(), len(gc.get_objects())))

Journal.event = told
run_recipe(load_recipe(json.loads(sys.argv[1])), Path(sys.argv[2]), [])
print(json.dumps(seen))
"""
RECIPE = {
    "model": "nano",
    "data": {"train": {"kind": "strings", "count": 800}, "validation": None, "test": 4, "max_tokens": 96},
    "train": {"tuner": "full", "batch": {"records": 4}, "save": {"every": 100}},
    "budget": {"updates": 2000},
    "evaluate": {"perplexity": False},
    "generate": {"max_new_tokens": 8},
}
ROLLOUTS = {
    **RECIPE,
    "train": {**RECIPE["train"], "objective": "grpo", "save": {"every": 50}},
    "rl": {"strategy": {"kind": "plain", "group": 4}, "generate": {"max_new_tokens": 8}},
    "reward": ["exact", {"kind": "length", "right": "exact", "unit": "characters", "weight": 0.1}],
    "budget": {"updates": 300},
}


@pytest.mark.slow
@pytest.mark.parametrize("content", [RECIPE, ROLLOUTS], ids=["2000 updates", "300 rollouts"])
def test_memory_stays_where_it_is(tmp_path, content):
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, json.dumps(content), str(tmp_path / "run")],
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert child.returncode == 0, child.stderr
    seen = json.loads(child.stdout.splitlines()[-1])
    assert seen[-1][0] == content["budget"]["updates"]
    early = 2 * content["train"]["save"]["every"]
    start = next(place for place, (update, *_) in enumerate(seen) if update > early)
    first, last = seen[start : start + 5], seen[-5:]
    bytes_first, bytes_last = (statistics.median(resident for _, resident, _ in some) for some in (first, last))
    objects_first, objects_last = (statistics.median(count for *_, count in some) for some in (first, last))
    print(f"{bytes_first / 1e6:.1f} MB, {bytes_last / 1e6:.1f} MB; {objects_first} objects, {objects_last}")
    assert bytes_last <= 1.02 * bytes_first
    assert objects_last <= objects_first + 200
