"""Every example runs and is linked from the README. A part in an example is short and passes its slot's checks."""

import ast
import json
import runpy
from pathlib import Path

import pytest

from luthier import parts
from luthier.conformance.matrix import checked_slots, run_checks
from luthier.recipe import load_recipe
from luthier.recipe.methods import slot_of_file
from luthier.steps.run import run_recipe

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
BY_HAND = ROOT / "examples" / "training_by_hand.py"
PARTS = [path for path in EXAMPLES if any(isinstance(node, ast.ClassDef) for node in ast.parse(path.read_text()).body)]
"""Files without a class are scripts, not parts."""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path, capsys):
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_examples_are_short_and_linked():
    readme = (ROOT / "README.md").read_text()
    assert [path.name for path in EXAMPLES if f"(examples/{path.name})" not in readme] == []
    assert [path.name for path in PARTS if len(path.read_text().splitlines()) >= 40] == []


def test_the_training_by_hand_is_that_of_a_run(tmp_path):
    by_hand = runpy.run_path(str(BY_HAND))
    recipe = load_recipe(by_hand["CHANGES"], base=BY_HAND.parent)
    run_recipe(recipe, tmp_path, [])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    of_the_run = [line["loss"] for line in lines if "loss" in line]
    assert len(of_the_run) == 4
    assert by_hand["train"](recipe, updates=4) == pytest.approx(of_the_run, rel=1e-5)


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
def test_an_example_passes_the_checks_of_its_slot(path):
    slot = slot_of_file(path)
    outcomes = list(run_checks(slot, parts.load(slot, str(path))))
    assert outcomes and [outcome for outcome in outcomes if not outcome.passed] == []


def test_every_slot_with_checks_has_an_example():
    assert set(checked_slots()) == {slot_of_file(path) for path in PARTS}
