import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import RecipeError
from luthier.recipe import aliases, load, load_recipe, merge
from luthier.recipe.settings import Settings

PART = '''
"""A made-up loss."""
from luthier.objectives.base import TokenObjective


class {name}(TokenObjective):
    """Half the loss."""

    power: float = 2.0

    def token_loss(self, view):
        return -view.logprob / 2
'''


def test_names_of_other_tools_lead_to_keys_that_exist():
    for key, names in aliases.NAMES_ELSEWHERE.items():
        assert key in merge.keys_named(key.rpartition(".")[2], Settings, ()), key
        taken = [name for name in names if merge.keys_named(name, Settings, ())]
        assert taken in ([], ["learning_rate"])  # compare.learning_rate is a rule, and nobody means it by this
    assert len(aliases.ALIASES) == sum(map(len, aliases.NAMES_ELSEWHERE.values()))


def test_a_short_recipe(workshop):
    recipe = load_recipe(workshop.recipe("budget: {epochs: 3}"))
    assert recipe.name == "mine"
    assert recipe.base == workshop.folder
    assert recipe.settings.budget.epochs == 3
    assert recipe.data["budget"] == {"epochs": 3}
    assert recipe.origins["budget.epochs"] == "recipe mine.yaml:4"
    assert recipe.origins["train.schedule.kind"] == "default"


def test_every_value_has_an_origin(workshop):
    from luthier.recipe.merge import leaves

    recipe = load_recipe(workshop.recipe())
    assert set(recipe.origins) == {".".join(key) for key, _ in leaves(recipe.data)}


def test_options_of_parts_are_written_out(workshop):
    recipe = load_recipe(workshop.recipe("train: {optimizer: {lr: 1e-5}}"))
    assert recipe.data["train"]["optimizer"]["lr"] == 1e-5
    assert recipe.origins["train.optimizer.lr"] == "recipe mine.yaml:4"
    assert recipe.origins["train.optimizer.clip"] == "default"
    assert recipe.settings.train.optimizer == recipe.data["train"]["optimizer"]


def test_precedence(workshop):
    workshop.recipe("train: {batch: {records: 1}, optimizer: {lr: 1e-1}}\nseed: 1\nout: base\nname: other", "base.yaml")
    workshop.write("mine.yaml", "extends: base.yaml\ntrain: {optimizer: {lr: 1e-2}, objective: sft}\nseed: 2\n")
    recipe = load_recipe("mine.yaml", ["dft"], ["seed=3"])
    assert recipe.settings.train.batch.records == 1
    assert recipe.origins["train.batch.records"] == "recipe base.yaml:4"
    assert recipe.settings.train.optimizer["lr"] == 1e-2
    assert recipe.settings.train.objective["kind"] == "dft"
    assert recipe.origins["train.objective.kind"] == "method dft"
    assert (recipe.settings.seed, recipe.origins["seed"]) == (3, "command line")
    assert (recipe.settings.out, recipe.name) == ("base", "mine")


def test_a_changed_kind_leaves_the_options_of_the_old_one_behind(workshop):
    recipe = load_recipe(workshop.recipe("train: {tuner: {kind: lora, r: 4}}"), [], ["train.tuner=full"])
    assert "r" not in recipe.data["train"]["tuner"]


def test_a_block_without_kind_merges_with_the_default_part(workshop):
    assert load_recipe(workshop.recipe("train: {tuner: {r: 4}}")).data["train"]["tuner"]["kind"] == "lora"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {}", r"recipe mine\.yaml:4: there is no key `trian`\.\n.*Did you mean `train`"),
        ("train: {optimizer: {lrr: 1}}", r"recipe mine\.yaml:4: train\.optimizer: .*no option `lrr`.*\n.*`lr`"),
        ("train: {tuner: lorra}", r"mine\.yaml:4: train\.tuner: There is no tuner called `lorra`.*\n.*`lora`"),
        ("train: {tuner: {kind: lora, r: many}}", r"mine\.yaml:4: train\.tuner: .*many"),
        ("train: {batch: {records: many}}", r"train\.batch\.records: expected a whole number; found 'many'"),
        ("train: {precision: bf16}", r"found 'bf16'\.\n.*`bfloat16`"),
        ("train:", r"train: expected a block of keys; found nothing"),
        ("model: 3", "is written twice"),
        ("budget: {epochs: 1, tokens: 5}", r"mine\.yaml:4: budget: give exactly one of .* found epochs and tokens"),
        ("generate: {temperature: -1}", r"generate\.temperature: must be greater than or equal to 0; found -1"),
        ("extends: 3", "`extends` names one recipe, found 3"),
        ("extends: mine.yaml", r"in a circle: mine\.yaml -> mine\.yaml"),
        ("evaluate: {metric: 5}", r"evaluate\.metric: expected the name of a part"),
        ("train: {objective: ./gone.py}", r"mine\.yaml:4: train\.objective: objective: there is no file"),
        ("extend: base.yaml", r"Did you mean `extends`"),
        ("lr: 1e-4", r"no key `lr`\.\n.*There is `train\.optimizer\.lr`"),
        ("learning_rate: 1e-4", r"no key `learning_rate`\.\n.*That is `train\.optimizer\.lr` here; keys of"),
        ("train: {batch_size: 4}", r"no key `train\.batch_size`\.\n.*That is `train\.batch\.records` here"),
        ("steps: true", r"mine\.yaml:4: steps: .*found True"),
        ("epochs: 3", r"no key `epochs`\.\n.*There is `budget\.epochs`"),
        ("rl: {group: 8}", r"no key `rl\.group`\.\n.*There is `rl\.strategy\.group`; keys of `rl`: kind, strategy"),
        ("train: {optimizer: {lr: '1e-4'}}", r"mine\.yaml:4: .*optimizer\.lr: expected a number \(found '1e-4'\)"),
        ("train: {optimizer: {lr: true}}", r"optimizer\.lr: expected a number \(found True\)"),
        ("train: {optimizer: {lr: .inf}}", r"optimizer\.lr: expected a finite number \(found inf\)"),
        ("train: {optimizer: {betas: [0.9, '0.95']}}", r"optimizer\.betas: expected a number"),
        ("train: {tuner: {rank_stabilised: 1}}", r"tuner\.rank_stabilised: expected true or false \(found 1\)"),
        ("train: {tuner: {r: 0}}", r"tuner\.r: must be greater than or equal to 1 \(found 0\)"),
        ("train: {objective: {kind: dpo, loss: hige}}", r"objective\.loss: expected .*found 'hige'.*\n.*`hinge`"),
        ("reward: {kind: format, pattern: '(('}", r"reward\.pattern: not a regular expression: missing \)"),
        ("reward: ./gone.py", r"mine\.yaml:4: reward\.0: reward: there is no file"),
        ("evaluate: {retain: {kind: sums, path: a.jsonl}}", r"mine\.yaml:4: evaluate\.retain: .*no option `path`"),
        ("seed: 5\nseed: 6", r"mine\.yaml:5: `seed` is written twice"),
    ],
)
def test_mistakes_are_one_clear_error(workshop, text, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(workshop.recipe(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Mine: ...", r"mine\.yaml:4: reward\.0: reward: Mine in mine\.py is no part\.\n.*base class"),
        (
            "from luthier.objectives.base import TokenObjective\nclass Mine(TokenObjective): ...",
            r"mine\.yaml:4: reward\.0: `\./mine\.py` is no reward, it is of the family objective",
        ),
        (
            "class Mine:\n    def score(self)\n",
            r"mine\.yaml:4: reward\.0: .*mine\.py:2: not valid Python: expected ':'",
        ),
    ],
)
def test_a_file_that_holds_no_such_part(workshop, text, message):
    workshop.write("mine.py", text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(workshop.recipe("reward: ./mine.py"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("- a", "a list"),
        ("data: {train: a.jsonl}", "no `model`"),
        ("model: m", "no `data`"),
        ("model: m\ndata: {}", r"no `data\.train`"),
        ("model: {dtype: auto}\ndata: {train: a}", r"no `model\.path`"),
        ("model: m\ndata: {train: {limit: 3}}", r"data\.train"),
        ("model: m\ndata: {train: {pathh: a}}", r"no key `data\.train\.pathh`\.\n.*Did you mean `data\.train\.path`"),
    ],
)
def test_unfinished_recipes(workshop, text, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(workshop.write("mine.yaml", text))


def test_a_missing_file_offers_the_nearest(workshop):
    workshop.recipe()
    with pytest.raises(RecipeError, match=r"Did you mean `mine\.yaml`"):
        load_recipe("mime.yaml")


def test_a_folder_is_not_a_recipe(workshop):
    with pytest.raises(RecipeError, match="is a folder"):
        load_recipe(workshop.folder)


def test_a_file_that_is_not_text(workshop):
    (workshop.folder / "mine.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe("mine.yaml")


def test_unknown_paths_on_the_command_line(workshop):
    with pytest.raises(RecipeError, match=r"command line: there is no key `train\.optimzer`.*\n.*train\.optimizer"):
        load_recipe(workshop.recipe(), [], ["train.optimzer.lr=1"])


def test_extends_is_not_for_the_command_line(workshop):
    with pytest.raises(RecipeError, match="`extends` is for recipe files only"):
        load_recipe(workshop.recipe(), [], ["extends=a.yaml"])


def test_two_budgets_on_the_command_line(workshop):
    with pytest.raises(RecipeError, match="command line: budget: give exactly one"):
        load_recipe(workshop.recipe(), [], ["budget.epochs=1", "budget.tokens=9"])


def test_an_override_replaces_the_whole_budget(workshop):
    assert load_recipe(workshop.recipe("budget: {epochs: 3}"), [], ["budget.updates=5"]).data["budget"] == {
        "updates": 5
    }


def test_circles_of_recipes(workshop):
    workshop.write("a.yaml", "extends: b.yaml\nmodel: m\n")
    workshop.write("b.yaml", "extends: a.yaml\n")
    with pytest.raises(
        RecipeError, match=r"circle: .*a\.yaml -> b\.yaml -> a\.yaml|circle: b\.yaml -> a\.yaml -> b\.yaml"
    ):
        load_recipe("a.yaml")


def test_files_of_an_extended_recipe_start_from_its_folder(workshop):
    workshop.write("shared/base.yaml", "model: ./model\ndata: {train: data.jsonl}\n")
    workshop.write("shared/data.jsonl", "{}")
    workshop.write("shared/model/config.json", "{}")
    workshop.write("mine.yaml", "extends: shared/base.yaml\n")
    recipe = load_recipe("mine.yaml")
    assert recipe.data["data"]["train"]["path"] == "shared/data.jsonl"
    assert recipe.data["model"]["path"] == "shared/model"


def test_files_on_the_command_line_may_start_from_the_current_folder(workshop):
    workshop.recipe(name="deep/mine.yaml")
    workshop.write("other.jsonl", "{}")
    recipe = load_recipe("deep/mine.yaml", [], ["data.train=other.jsonl", "data.test=beside.jsonl"])
    assert recipe.data["data"]["train"]["path"] == "../other.jsonl"
    assert recipe.data["data"]["test"]["path"] == "beside.jsonl"


def test_bundled_recipes_have_names(workshop, monkeypatch):
    monkeypatch.setattr(load, "BUNDLED", workshop.folder / "bundled")
    workshop.recipe("seed: 7", "bundled/first.yaml")
    assert load_recipe("first").settings.seed == 7
    assert load_recipe("first").base == workshop.folder
    workshop.write("mine.yaml", "extends: first\nname: own\n")
    assert (load_recipe("mine.yaml").settings.seed, load_recipe("mine.yaml").name) == (7, "own")
    with pytest.raises(RecipeError, match="Did you mean `first`"):
        load_recipe("frist")


def test_a_dict_is_a_recipe(workshop):
    recipe = load_recipe({"model": "m", "data": {"train": "a"}}, base=workshop.folder)
    assert (recipe.name, recipe.base) == ("recipe", workshop.folder)


def test_a_part_file_beside_the_recipe(workshop):
    workshop.write("halved.py", PART.format(name="Halved"))
    recipe = load_recipe(workshop.recipe("train: {objective: {kind: ./halved.py, power: 3}}"))
    assert recipe.data["train"]["objective"] == {"kind": "./halved.py", "power": 3}
    assert "Half the loss" in recipe.text_of_parts["./halved.py"]
    assert type(recipe.build_parts()["train.objective"]).__name__ == "Halved"


def test_parts_of_a_list_are_built_by_index(workshop):
    recipe = load_recipe(workshop.recipe("train: {objective: [sft, {kind: dft, coefficient: 0.5}]}"))
    built = recipe.build_parts()
    lists = {"train.objective.0", "train.objective.1"}
    assert lists | {"train.tuner", "train.optimizer", "train.schedule", "generate.sampler"} == set(built)


@given(
    st.dictionaries(
        st.sampled_from(["model", "data", "train", "budget", "seed", "evaluate", "compare", "x", "extends"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        ["train", "kind", "path", "objective", "tuner", "epochs", "metric", "tune", "seeds"]
                    ),
                    inner,
                    max_size=3,
                )
            ),
            max_leaves=6,
        ),
    )
)
def test_any_content_is_a_recipe_or_refused(content):
    with contextlib.suppress(RecipeError):
        load_recipe({"model": "m", "data": {"train": "a"}, **content})
