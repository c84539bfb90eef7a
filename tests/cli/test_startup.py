"""What a user waits for at every command: importing, help and the schema check, in fresh processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import luthier

LIMIT = 0.5
ALL_METHODS = 1.0  # every method is resolved and every part it names imported
TRIES = 6
LOOP_SECONDS = 0.058  # of `slowness` where the limits were set, an AMD EPYC at full speed
HEAVY = ("torch", "transformers", "peft", "datasets", "matplotlib")
CODE = """
import sys
sys.argv = ["luthier", *{arguments!r}]
from luthier.cli.app import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
loaded = [name for name in {heavy!r} if name in sys.modules]
assert not loaded, loaded
"""


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(luthier.__file__).parents[1])}


def seconds(code):
    """Processor time of one fresh process: unlike the time on the clock it does not count other processes' work."""
    before = os.times()
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    after = os.times()
    assert finished.returncode == 0, finished.stderr
    return after.children_user + after.children_system - before.children_user - before.children_system


def slowness():
    """How much longer a fixed loop takes just now than where the limits were set: 1 to 2. Speeds of machines drift."""
    before = time.process_time()
    sum(number * number for number in range(1_000_000))
    return min(2.0, max(1.0, (time.process_time() - before) / LOOP_SECONDS))


@pytest.mark.parametrize(
    "command, limit",
    [
        ("--help", LIMIT),
        ("compare --help", LIMIT),
        ("methods", LIMIT),
        ("methods lora", LIMIT),
        ("keys", LIMIT),
        ("keys train.batch", LIMIT),
        ("schema", LIMIT),
        ("check mine.yaml --show", LIMIT),
        ("check mine.yaml --show --methods all", ALL_METHODS),
    ],
)
def test_answers_at_once_and_without_torch(here, command, limit):
    code = CODE.format(arguments=command.split(), heavy=HEAVY)
    took = []
    while len(took) < TRIES and (not took or min(took) >= limit):
        slow = (slowness(), seconds(code), slowness())
        took.append(slow[1] * 2 / (slow[0] + slow[2]))
    assert min(took) < limit


def test_importing_luthier_loads_nothing_heavy():
    code = "import sys, luthier; luthier.load_recipe, luthier.LuthierError, luthier.TokenObjective, luthier.Tuner, "
    code += "luthier.Metric, luthier.Part, luthier.Recipe, luthier.Objective, luthier.SequenceObjective\n"
    code += f"assert not [name for name in {HEAVY!r} if name in sys.modules]"
    seconds(code)


def test_every_public_name_exists():
    assert [name for name in luthier.__all__ if not hasattr(luthier, name)] == []
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = luthier.nothing_like_this


@pytest.mark.parametrize("first", ["import luthier.compare.plan", "from luthier.compare import compare", "pass"])
def test_compare_is_a_room_and_a_function(first):
    code = f"{first}\nimport luthier\nassert callable(luthier.compare)\nfrom luthier.compare import plan as p\n"
    code += "import luthier.compare.plan as q\nassert p is q\nfrom luthier import compare\n"
    code += "assert compare is luthier.compare"
    seconds(code)


def test_the_module_is_the_command():
    finished = subprocess.run(
        [sys.executable, "-m", "luthier", "--version"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert finished.stdout == "luthier 0.1.0\n"
