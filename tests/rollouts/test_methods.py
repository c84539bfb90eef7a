import pytest

from luthier.recipe.load import load_recipe
from luthier.recipe.methods import find_method, slot_of_file
from luthier.rollouts.base import build_chain, check_chain

RECIPE = "model: nano\ndata: {train: {kind: strings, count: 20}}\nbudget: {updates: 1}\n"


@pytest.mark.parametrize(
    ("name", "strategy", "chain", "norm"),
    [("prefix_rft", "prefix", ["center", "entropy_gate"], "constant"), ("bread", "branch", ["group_norm"], "token")],
)
def test_methods_of_rollouts_resolve(tmp_path, name, strategy, chain, norm):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    resolved = load_recipe(file, methods=[name]).data
    assert resolved["rl"]["strategy"]["kind"] == strategy
    assert [link["kind"] for link in resolved["rl"]["advantages"]] == chain
    assert (resolved["train"]["objective"]["kind"], resolved["train"]["objective"]["norm"]) == ("grpo", norm)
    check_chain(build_chain(resolved["rl"]["advantages"]))
    assert "arXiv" in find_method(name, (tmp_path,))[0].about


@pytest.mark.parametrize(
    ("room", "base", "slot"),
    [("rewards", "Reward", "reward"), ("rollouts", "Strategy", "strategy"), ("rollouts", "Advantage", "advantage")],
)
def test_a_part_file_of_the_users_tells_its_slot(tmp_path, room, base, slot):
    file = tmp_path / "mine.py"
    file.write_text(f"from luthier.{room}.base import {base}\n\n\nclass Mine({base}):\n    pass\n")
    assert slot_of_file(file) == slot
