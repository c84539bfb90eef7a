import json

import pytest

from luthier.records import RunFolder, read_json


def test_a_run_gets_a_numbered_folder_with_its_lock(luthier, here, room):
    calls = room("luthier.steps.run_recipe")
    for number in (1, 2):
        result = luthier("run", "mine.yaml", "seed=3", "--method", "dft", "--out", "my runs")
        assert result.out == f"results: my runs/mine/{number}\n"
    (recipe, folder, observers), _ = calls[1]
    assert str(folder) == "my runs/mine/2"
    assert observers == ["jsonl", "progress"]
    lock = read_json(folder / "lock.json")
    assert lock["recipe"] == recipe.data
    assert (lock["recipe"]["seed"], lock["recipe"]["train"]["objective"]["kind"]) == (3, "dft")


def test_a_run_is_the_only_writer_of_its_folder(luthier, here, room):
    def inside(_recipe, folder, _observers):
        with pytest.raises(Exception, match="another process"), RunFolder(folder).lock():
            pass

    assert len(room("luthier.steps.run_recipe", inside)) == 0
    assert luthier("run", "mine.yaml").code == 0


def test_a_lock_runs_again(luthier, here, room):
    calls = room("luthier.steps.run_recipe")
    luthier("run", "mine.yaml", "seed=3")
    assert luthier("run", "runs/mine/1/lock.json").out == "results: runs/mine/2\n"
    assert calls[0][0][0] == calls[1][0][0]


def test_resuming_goes_on_in_the_same_folder(luthier, here, room):
    calls = room("luthier.steps.run_recipe")
    luthier("run", "mine.yaml", "seed=3")
    result = luthier("run", "mine.yaml", "seed=3", "out=elsewhere", "--resume", "runs/mine/1")
    assert result.out == "results: runs/mine/1\n"
    assert len(calls) == 2


def test_resuming_with_a_changed_recipe_names_the_key(luthier, here, room):
    calls = room("luthier.steps.run_recipe")
    luthier("run", "mine.yaml", "train.optimizer.lr=1e-4")
    result = luthier("run", "mine.yaml", "train.optimizer.lr=5e-5", "--resume", "runs/mine/1")
    assert result.code == 1
    assert "`train.optimizer.lr` was 0.0001 and is now 5e-05" in result.error
    assert len(calls) == 1


def test_resuming_what_is_no_run(luthier, here):
    (here / "empty").mkdir()
    result = luthier("run", "mine.yaml", "--resume", "empty")
    assert result.code == 1
    assert "lock.json" in result.error


def test_compare_passes_what_was_asked(luthier, here, room):
    calls = room("luthier.compare.compare", "runs/mine/1/report.html")
    result = luthier("compare", "mine.yaml", "--methods", "sft, dft+x", "--seeds", "3", "seed=1")
    assert result.out == "report: runs/mine/1/report.html\n"
    recipe, methods, seeds, folder, _ = calls[0][0]
    assert (recipe.settings.seed, methods, seeds, folder) == (1, ["sft", "dft+x"], 3, None)


@pytest.mark.parametrize(("text", "expected"), [("3", 3), ("0,4", [0, 4]), ("7,", [7])])
def test_seeds_are_a_number_or_a_list(luthier, here, room, text, expected):
    calls = room("luthier.compare.compare")
    luthier("compare", "mine.yaml", "--seeds", text)
    assert calls[0][0][2] == expected
    assert calls[0][0][1] is None


def test_eval_passes_what_was_asked(luthier, room):
    calls = room("luthier.steps.evaluate.evaluate_model")
    luthier("eval", "runs/mine/1", "--data", "a.jsonl", "--limit", "5", "generate.max_new_tokens=9")
    arguments, options = calls[0]
    assert arguments == ("runs/mine/1",)
    del options["console"]
    assert options == {"data": "a.jsonl", "metric": "auto", "limit": 5, "overrides": ["generate.max_new_tokens=9"]}


def test_report_says_where_it_wrote(luthier, here, room):
    calls = room("luthier.report.write_report", "table.tex")
    (here / "run").mkdir()
    assert luthier("report", "run", "--format", "latex").out == "table.tex\n"
    assert [str(item) for item in calls[0][0]] == ["run", "latex"]


def test_the_lock_is_plain_json(luthier, here, room):
    room("luthier.steps.run_recipe")
    luthier("run", "mine.yaml")
    assert json.loads((here / "runs/mine/1/lock.json").read_text())["luthier_lock"] == 1
