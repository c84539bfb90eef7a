import json

import pytest

from luthier.cli.arguments import read_columns
from luthier.errors import RecipeError
from luthier.run_folder import RunFolder, read_json

DONE = {
    "status": "done",
    "evaluation": {"target": {"mean": 0.8412, "n": 50, "ranks": True, "metric": "exact"}, "retain": None},
    "train": {
        "tokens_per_second": 1234.5,
        "seconds": 60.2,
        "peak_memory_bytes": 2.5e9,
        "estimated_memory_bytes": 2.25e9,
    },
}


@pytest.fixture
def runs(room):
    """The calls of a `run_recipe` that is done at once."""
    return room("luthier.steps.run_recipe", DONE)


def test_a_run_gets_a_numbered_folder_with_its_lock(command, here, runs):
    for number in (1, 2):
        result = command("run", "mine.yaml", "seed=3", "--method", "dft", "--out", "my runs")
        lines = result.out.splitlines()
        assert lines[0] == "target   84.1  (50 records, exact)"
        assert lines[2] == "memory  2.50 GB at the peak (2.25 GB estimated before)"
        assert lines[-1] == f"results: my runs/mine/{number}"
    (recipe, folder, observers), _ = runs[1]
    assert str(folder) == "my runs/mine/2"
    assert observers == ["progress"]
    lock = read_json(folder / "lock.json")
    assert lock["recipe"] == recipe.data
    assert (lock["recipe"]["seed"], lock["recipe"]["train"]["objective"]["kind"]) == (3, "dft")


def test_a_run_says_what_was_dropped_and_what_was_not_scored(command, here, room):
    train = {**DONE["train"], "data": {"warnings": ["max_tokens 5 drops 3 of 9 records"]}}
    done = {**DONE, "train": train, "evaluation": {}, "warnings": ["The reward `mine` failed 2 times"]}
    room("luthier.steps.run_recipe", done)
    lines = command("run", "mine.yaml").out.splitlines()
    assert lines[0] == "target    not scored: no test record"
    assert lines[3:5] == ["warning: max_tokens 5 drops 3 of 9 records", "warning: The reward `mine` failed 2 times"]


def test_a_run_is_the_only_writer_of_its_folder(command, here, room):
    def inside(_recipe, folder, _observers):
        with pytest.raises(Exception, match="another process"), RunFolder(folder).lock():
            pass
        return DONE

    assert len(room("luthier.steps.run_recipe", inside)) == 0
    assert command("run", "mine.yaml").code == 0


def test_a_lock_runs_again(command, here, runs):
    command("run", "mine.yaml", "seed=3")
    assert command("run", "runs/mine/1/lock.json").out.endswith("results: runs/mine/2\n")
    assert runs[0][0][0] == runs[1][0][0]


def test_a_comparison_is_not_resumed_as_a_run(command, here, runs):
    command("run", "mine.yaml")
    (here / "runs/mine/1/plan.json").write_text("{}")
    result = command("run", "mine.yaml", "--resume", "runs/mine/1")
    assert result.code == 1 and "folder of a comparison" in result.error and "luthier compare mine.yaml" in result.error
    assert len(runs) == 1


def test_resuming_goes_on_in_the_same_folder(command, here, runs):
    command("run", "mine.yaml", "seed=3")
    result = command("run", "mine.yaml", "seed=3", "out=elsewhere", "--resume", "runs/mine/1")
    assert result.out.endswith("results: runs/mine/1\n")
    assert len(runs) == 2


def test_a_stopped_run_says_how_to_go_on(command, here, room):
    room("luthier.steps.run_recipe", {"status": "stopped"})
    result = command("run", "mine.yaml")
    assert (result.code, result.out) == (130, "")
    assert "--resume runs/mine/1" in result.error


def test_resuming_with_a_changed_recipe_names_the_key(command, here, runs):
    command("run", "mine.yaml", "train.optimizer.lr=1e-4")
    result = command("run", "mine.yaml", "train.optimizer.lr=5e-5", "--resume", "runs/mine/1")
    assert result.code == 1
    assert "`train.optimizer.lr` was 0.0001, now 5e-05" in result.error
    assert len(runs) == 1


def test_resuming_with_a_changed_part_file(command, here, runs, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    text = "from luthier import TokenObjective\nclass Mine(TokenObjective):\n    def token_loss(self, view): ...\n"
    (here / "mine.py").write_text(text)
    command("run", "mine.yaml", "train.objective=./mine.py")
    (here / "mine.py").write_text(f"{text}# changed\n")
    result = command("run", "mine.yaml", "train.objective=./mine.py", "--resume", "runs/mine/1")
    assert result.code == 1
    assert "another version of ./mine.py" in result.error
    assert command("run", "runs/mine/1/lock.json", "--resume", "runs/mine/1").code == 0
    assert len(runs) == 2


def test_resuming_what_is_no_run(command, here):
    (here / "empty").mkdir()
    result = command("run", "mine.yaml", "--resume", "empty")
    assert result.code == 1
    assert "lock.json" in result.error


def test_compare_passes_what_was_asked(command, here, room):
    calls = room("luthier.compare.compare", "runs/mine/1/report.html")
    result = command("compare", "mine.yaml", "--methods", "sft, dft+x", "--seeds", "3", "seed=1")
    assert result.out == "report: runs/mine/1/report.html\n"
    recipe, methods, seeds, folder, _ = calls[0][0]
    assert (recipe.settings.seed, methods, seeds, folder) == (1, ["sft", "dft+x"], 3, None)


@pytest.mark.parametrize(("text", "expected"), [("3", 3), ("0,4", [0, 4]), ("7,", [7])])
def test_seeds_are_a_number_or_a_list(command, here, room, text, expected):
    calls = room("luthier.compare.compare")
    command("compare", "mine.yaml", "--seeds", text)
    assert calls[0][0][2] == expected
    assert calls[0][0][1] is None


def test_eval_passes_what_was_asked(command, room):
    calls = room("luthier.steps.evaluate.evaluate_model")
    command("eval", "runs/mine/1", "--data", "a.jsonl", "--limit", "5", "generate.max_new_tokens=9")
    arguments, options = calls[0]
    assert arguments == ("runs/mine/1",)
    del options["console"]
    expected = {"data": "a.jsonl", "metric": None, "limit": 5, "overrides": ["generate.max_new_tokens=9"]}
    assert options == {**expected, "columns": None}


def test_eval_maps_columns(command, room):
    calls = room("luthier.steps.evaluate.evaluate_model")
    command("eval", "nano", "--data", "a.jsonl", "--columns", "prompt=body+question, completion=The Answer")
    assert calls[0][1]["columns"] == {"prompt": ["body", "question"], "completion": "The Answer"}
    for wrong in ("prompt", "prompt=", "=answer", "prompt=a+"):
        with pytest.raises(RecipeError, match="is no mapping"):
            read_columns(wrong)


def test_report_says_where_it_wrote(command, here, room):
    calls = room("luthier.report.write_report", "table.tex")
    (here / "run").mkdir()
    assert command("report", "run", "--format", "latex").out == "table.tex\n"
    assert [str(item) for item in calls[0][0]] == ["run", "latex"]


def test_the_lock_is_plain_json(command, here, runs):
    command("run", "mine.yaml")
    assert json.loads((here / "runs/mine/1/lock.json").read_text())["luthier_lock"] == 1
