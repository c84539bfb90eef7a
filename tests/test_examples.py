"""Every example runs, stays short, and is linked from the README."""

import runpy
from pathlib import Path

import pytest

from luthier import parts
from luthier.recipe.methods import slot_of_file

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path, capsys):
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_examples_are_short_and_linked():
    readme = (ROOT / "README.md").read_text()
    assert [path.name for path in EXAMPLES if f"(examples/{path.name})" not in readme] == []
    assert [path.name for path in EXAMPLES if len(path.read_text().splitlines()) >= 40] == []


def test_every_slot_has_an_example():
    told = ("objective", "tuner", "selector", "reward", "strategy", "advantage", "metric")
    others = {
        "shortest": "subset",
        "echo": "dataset",
        "steps": "schedule",
        "momentum": "optimizer",
        "recall": "sampler",
        "average": "verb",
    }
    found = [others.get(path.stem) or slot_of_file(path) for path in EXAMPLES]
    assert set(told) | set(others.values()) == set(parts.SLOTS) == set(found)
