"""Run folders of an older version: `tests/support/old_run`, written before `rl.kind` and `evaluate.sample`.

`comparison` is one of sft and grpo. `stopped` was stopped after update 3 of 4; `uninterrupted.jsonl` holds the updates
of the same run when that version carried it to its end.
"""

import json
import shutil
from pathlib import Path

import pytest

from luthier.parts import PACKAGE

OLD = Path(__file__).parents[1] / "support" / "old_run"
STOPPED = ("recipe.yaml", "--method", "grpo", "evaluate.metric=chrf", "rl.strategy.group=4")


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The current folder, with a copy of the old runs that names it as their recipe's folder."""
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    for path in folder.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("FOLDER", str(folder)).replace("MODEL", str(PACKAGE / "models" / "nano")))
    monkeypatch.chdir(folder)
    return folder


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("form, file", [("csv", "results.csv"), ("latex", "table.tex"), ("markdown", "report.md")])
def test_the_report_is_written_as_it_was(command, old, form, file):
    (old / "comparison" / file).unlink()
    answer = command("report", "comparison", "--format", form)
    assert (answer.code, answer.out) == (0, f"comparison/{file}\n")
    if form != "markdown":  # its sentences may change, and so may the notes below a table
        now, before = (folder / "comparison" / file for folder in (old, OLD))
        end = "\\end{tabular}" if form == "latex" else "\0"
        assert now.read_text().split(end)[0] == before.read_text().split(end)[0]


def test_the_report_is_written_as_html(command, old):
    assert command("report", "comparison").code == 0
    assert "grpo" in (old / "comparison" / "report.html").read_text(encoding="utf-8")


def test_the_model_of_a_run_is_scored(command, old):
    answer = command("eval", "comparison/sft/seed-0", "--data", "data.jsonl", "--metric", "exact", "--limit", "3")
    assert answer.code == 0, answer.error
    assert "on 3 records" in answer.out


def test_a_finished_comparison_is_resumed_without_training_again(command, old):
    files = [path for path in (old / "comparison").glob("*/*/*.json*") if path.name != "log.txt"]
    before = {path: path.read_bytes() for path in files}
    answer = command("compare", "recipe.yaml", "--resume", "comparison")
    assert answer.code == 0, answer.error
    assert {path: path.read_bytes() for path in files} == before
    assert not list((old / "comparison").rglob("*.before-*"))
    was, now = (json.loads((folder / "comparison" / "results.json").read_text())["rows"] for folder in (OLD, old))
    assert [(row["method"], row["target"]) for row in now] == [(row["method"], row["target"]) for row in was]


def test_another_comparison_is_still_refused(command, old):
    answer = command("compare", "recipe.yaml", "--resume", "comparison", "data.max_tokens=32")
    assert answer.code == 1
    assert "holds another comparison" in answer.error


def test_a_stopped_run_goes_on_from_its_checkpoint(command, old):
    (checkpoint,) = (old / "stopped" / "checkpoints").iterdir()
    assert checkpoint.name == "update-00000003"
    answer = command("run", *STOPPED, "--resume", "stopped")
    assert answer.code == 0, answer.error
    resumed, uninterrupted = records(old / "stopped" / "metrics.jsonl"), records(old / "uninterrupted.jsonl")
    assert [line["update"] for line in resumed] == [1, 2, 3, 4]
    assert resumed[:3] == records(OLD / "stopped" / "metrics.jsonl")  # kept, not computed again
    for key in ("loss", "gradient_norm", "learning_rate", "tokens"):
        assert resumed[3][key] == pytest.approx(uninterrupted[3][key], rel=1e-3, abs=1e-6)
    assert json.loads((old / "stopped" / "run.json").read_text())["status"] == "done"


def test_the_lock_of_a_stopped_run_resumes_it(command, old):
    answer = command("run", "stopped/lock.json", "--resume", "stopped")
    assert answer.code == 0, answer.error
    assert len(records(old / "stopped" / "metrics.jsonl")) == 4


def test_a_stopped_run_is_not_resumed_with_another_recipe(command, old):
    answer = command("run", *STOPPED, "rl.updates=2", "--resume", "stopped")
    assert answer.code == 1
    assert "`rl.updates` was 1, now 2" in answer.error
