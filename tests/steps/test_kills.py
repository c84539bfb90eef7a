"""`luthier run` killed with SIGKILL at twenty keyed moments and resumed ends in the bits of a run left alone.

Moments are of two kinds: so long after something (the start of the process, an update), and as soon as something
lies on the disk (half a checkpoint, a model being written). One run is killed again and again, so that what a kill
leaves is what the next one meets.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.run_folder import read_json, read_jsonl

CLOCKS = ("seconds", "tokens_per_second", "memory_bytes")
PATIENCE = 180.0

PLAIN = {
    "model": "nano",
    "data": {"train": "data.jsonl", "validation": None, "test": 6, "max_tokens": 64},
    "train": {"tuner": "full", "batch": {"records": 4}, "save": {"every": 1}},
    "budget": {"updates": 60},
    "evaluate": {"metric": "exact"},
    "generate": {"max_new_tokens": 6},
    "observe": [],
}
ROLLOUTS = {
    **PLAIN,
    "budget": {"updates": 24},
    "reward": ["./letters.py"],
    "train": {**PLAIN["train"], "objective": "grpo"},
    "rl": {"strategy": {"kind": "plain", "group": 4}, "updates": 2, "generate": {"max_new_tokens": 6}},
}
LETTERS = '''"""How many letters are right; some records make it fail."""

from luthier.rewards.base import Reward


class Letters(Reward):
    """A share of letters."""

    def score(self, answer):
        if "k" in answer.gold:
            raise ValueError("no k")
        return sum(a == b for a, b in zip(answer.text, answer.gold)) / 4
'''


def exists(pattern):
    return lambda folder: any(True for _ in folder.glob(pattern))


# What is waited for, before the kill: a name, something on the disk, the longest wait behind it in seconds.
AT_START = ("after the start", lambda folder: True, 4.0)
UPDATE = ("after an update", None, 0.3)
HALF = ("checkpoint begun", exists("checkpoints/.half-*"), 0.0)
WRITING = ("checkpoint half written", exists("checkpoints/.half-*/state.safetensors"), 0.004)
WHOLE = ("new checkpoint beside two old ones", lambda folder: len([*folder.glob("checkpoints/update-*")]) > 2, 0.0)
MODEL = ("model being saved", exists("model"), 0.02)
EVALUATED = ("evaluation written", exists("evaluation.jsonl"), 0.0)
KILLS = {
    "plain": (
        PLAIN,
        [AT_START, HALF, UPDATE, WRITING, UPDATE, WHOLE, UPDATE, AT_START, HALF, WRITING, UPDATE, WHOLE, MODEL, MODEL],
    ),
    "rollouts": (ROLLOUTS, [AT_START, UPDATE, HALF, WRITING, UPDATE, WHOLE]),
}


def start(recipe, *more):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "luthier", "run", str(recipe), *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=recipe.parent,
    )


def updates(folder):
    return sum("loss" in line for line in read_jsonl(folder / "metrics.jsonl"))


def kill(process, folder, what, draw):
    """Wait for the moment, kill, and say how far the run was."""
    name, seen, longest = what
    began, before, more = time.monotonic(), updates(folder), draw.randint(1, 3)
    while process.poll() is None and time.monotonic() < began + PATIENCE:
        ready = name in ("after the start", "model being saved") or updates(folder) >= before + more
        if ready and (seen is None or seen(folder)):
            break
    time.sleep(longest * draw.random())
    os.kill(process.pid, signal.SIGKILL)
    told = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGKILL, f"{name}: it had ended before\n{told}"
    return updates(folder)


def finish(process):
    told = process.communicate(timeout=PATIENCE)[1].decode()
    assert process.returncode == 0, told


def what_is_left(folder):
    """All that a run computes: weights, metrics without clocks, answers."""
    lines = [
        {name: value for name, value in line.items() if name not in CLOCKS}
        for line in read_jsonl(folder / "metrics.jsonl")
    ]
    weights = (folder / "model" / "model.safetensors").read_bytes()
    return weights, lines, read_jsonl(folder / "evaluation.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS)
def test_killed_again_and_again_a_run_ends_in_the_same_bits(tmp_path, name):
    content, moments = KILLS[name]
    words = [f"{a}{b}{c}" for a in "abcde" for b in "fghij" for c in "klm"]
    lines = [json.dumps({"prompt": f"reverse {word}", "completion": word[::-1]}) for word in words]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "letters.py").write_text(LETTERS)
    recipe = tmp_path / "recipe.json"  # JSON is YAML
    recipe.write_text(json.dumps(content))
    whole, killed = (tmp_path / out / "recipe" / "1" for out in ("whole", "killed"))
    finish(start(recipe, "--out", "whole"))

    reached = []
    for number, what in enumerate(moments):
        again = (killed / "lock.json").is_file()
        process = start(recipe, *(["--resume", str(killed)] if again else ["--out", "killed"]))
        reached.append((what[0], kill(process, killed, what, random.Random(f"{name}/{number}"))))
        if not (killed / "lock.json").is_file() and killed.exists():
            Path.rmdir(killed)  # killed before the run had begun
    finish(start(recipe, "--resume", str(killed)))
    print("\n".join(f"{name} at update {at}" for name, at in reached))

    one, other = what_is_left(whole), what_is_left(killed)
    assert one[1] == other[1] and one[2] == other[2]
    assert one[0] == other[0]
    assert read_json(killed / "run.json")["status"] == "done" and not (killed / "checkpoints").exists()
    if name == "rollouts":
        assert any(line.get("event") == "reward_failed" for line in one[1])
