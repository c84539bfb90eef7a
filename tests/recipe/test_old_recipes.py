"""Recipes, methods, proofs and options of an older version still load, or one error names the new key."""

from pathlib import Path

import pytest

from luthier import parts
from luthier.errors import RecipeError
from luthier.proofs.proof import read_proof
from luthier.recipe import load_recipe, yaml
from luthier.recipe.renamed import RENAMED
from luthier.recipe.stages import stages_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OLD = yaml.parse((HERE / "old_recipes.yaml").read_text(encoding="utf-8"), "old_recipes.yaml").data
OLD_PARTS = yaml.parse((HERE / "old_parts.yaml").read_text(encoding="utf-8"), "old_parts.yaml").data
MODELS = {"language": "nano", "diffusion": "nano-digits", "contrastive": {"config": {"model_type": "siglip"}}}
REWARD = '''
"""A reward of the user's, which docs/rewards.md names."""
from luthier.rewards.base import Reward


class Mine(Reward):
    """Long answers."""

    def score(self, answers):
        return [float(len(answer.text)) for answer in answers]
'''


@pytest.fixture
def folder(tmp_path):
    """A folder with the part files that old recipes name."""
    for path in (ROOT / "examples").glob("*.py"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "mine.py").write_text(REWARD)
    return tmp_path


@pytest.mark.parametrize("name", OLD["recipes"])
def test_an_old_recipe_loads(folder, name):
    content = yaml.parse(OLD["recipes"][name], name).data
    content = {"model": "nano", "data": {"train": "data.jsonl"}, **content}
    recipe = load_recipe(content, base=folder)
    assert stages_of(recipe)
    assert not {*RENAMED} & {*recipe.data}
    assert load_recipe(recipe.to_lock()).data == recipe.data


@pytest.mark.parametrize("override", ["train.optimizer.lr=5e-5", "budget={epochs: 3}", "train.batch.records=1"])
def test_an_old_override_is_taken(folder, override):
    recipe = load_recipe({"model": "nano", "data": {"train": "data.jsonl"}}, [], [override], folder)
    assert "command line" in recipe.origins.values()


@pytest.mark.parametrize("name", OLD["methods"])
def test_an_old_method_file_applies_as_the_package_s_does(folder, name):
    path = folder / f"old_{name}.yaml"
    path.write_text(OLD["methods"][name], encoding="utf-8")
    written = yaml.parse(OLD["methods"][name], name).data.get("method", {}).get("train", {}).get("objective", "sft")
    kind = written if isinstance(written, str) else written["kind"]
    modality = parts.find("objective", kind).constants.get("MODALITY", "language")
    content = {"model": MODELS[modality], "data": {"train": "data.jsonl"}}
    if modality == "diffusion":
        content |= {"reward": "digit", "rollout": {"groups": 2}}
    overrides = ["train.select.reference=./reference"] if name == "rho" else []  # it has no default
    recipe = load_recipe(content, [path.name], overrides, folder)
    assert stages_of(recipe)
    packaged = load_recipe(content, [name], overrides, folder)
    if name != "spiel_ma":  # whose advised learning rate was changed to the best of its proof's grid
        assert recipe.data == packaged.data


@pytest.mark.parametrize(
    "path", sorted((ROOT / "src" / "luthier" / "proofs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_recipe_of_a_committed_proof_loads_under_each_of_its_methods(path):
    recipe = dict(read_proof(path.stem).recipe)
    methods = load_recipe(recipe).settings.compare.methods
    for method in methods:
        assert stages_of(load_recipe(recipe, [method]))


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_key_beside_the_new_one_is_one_error_that_names_both(folder, old):
    new = RENAMED[old]
    content = {"model": "nano-digits", "data": {"train": "digits"}, old: {"steps": 3}}
    content[new[0]] = {"steps": 3} if len(new) == 1 else {new[1]: {"steps": 3}}
    with pytest.raises(RecipeError) as error:
        load_recipe(content, base=folder)
    assert f"`{old}`" in error.value.message
    assert f"`{'.'.join(new)}`" in error.value.message


@pytest.mark.parametrize("slot", OLD_PARTS)
def test_old_options_of_parts_are_taken(slot):
    for kind, known in OLD_PARTS[slot].items():
        fields = parts.load(slot, kind).model_fields
        assert [option for option in known["options"] if option not in fields] == [], kind
        for settings in known.get("settings", []):
            part = parts.build(slot, {"kind": kind, **settings})
            assert set(settings) <= part.model_fields_set
