"""The methods of policy gradients are patches whose parts exist and fit."""

import pytest

from luthier import parts
from luthier.objectives.sum import build_objective
from luthier.recipe import list_methods, load_recipe

METHODS = {
    "grpo": ("grpo", ["group_norm"]),
    "dapo": ("grpo", ["group_norm"]),
    "dr_grpo": ("grpo", ["center"]),
    "gspo": ("grpo", ["group_norm"]),
    "cispo": ("grpo", ["group_norm"]),
    "rloo": ("rloo", ["kl_penalty", "leave_one_out"]),
    "ppo": ("ppo", ["kl_penalty", "gae", "whiten"]),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_made_of_parts_that_fit(name, tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: nano\ndata: {train: strings}\n")
    settings = load_recipe(tmp_path / "recipe.yaml", [name]).settings
    objective = build_objective(settings.train.objective, tmp_path)
    chain = [parts.build("advantage", spec, tmp_path) for spec in settings.rl.advantages]
    assert (objective.kind, [link.kind for link in chain]) == METHODS[name]
    born = {"advantages", "old_logprobs", "values", "logprobs:initial"} | {w for link in chain for w in link.WRITES}
    assert set(objective.reads) <= born
    assert name in {method.name for method in list_methods()}


def test_they_differ_where_their_papers_do(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: nano\ndata: {train: strings}\n")
    settings = {name: load_recipe(tmp_path / "recipe.yaml", [name]).settings for name in METHODS}
    dumps = [(s.train.model_dump_json(), s.rl.model_dump_json()) for s in settings.values()]
    assert len(set(dumps)) == len(METHODS) and settings["dapo"].rl.refill and settings["ppo"].rl.passes == 4
