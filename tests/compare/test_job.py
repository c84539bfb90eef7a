import csv
import io
import json

import pytest
from rich.console import Console

from luthier.compare import compare
from luthier.compare.job import choose
from luthier.compare.plan import plan
from luthier.errors import RunError


def run(recipe, worker, monkeypatch, folder=None, orders=None, **arguments):
    monkeypatch.setenv("FAKE_ORDERS", json.dumps({"items": 30, **(orders or {})}))
    console = Console(file=io.StringIO(), width=140)
    report = compare(recipe, folder=folder, console=console, command=worker, **arguments)
    return report, json.loads((report.parent / "results.json").read_text()), console.file.getvalue()


def test_three_seeds_end_to_end(recipe, worker, monkeypatch):
    report, results, shown = run(recipe, worker, monkeypatch, methods=["sft", "dft", "asft"], seeds=3)
    assert report.name == "report.html" and report.parent.parts[-3:] == ("runs", "mine", "1")
    assert {path.name for path in report.parent.iterdir()} >= {
        *("plan.json", "lock.json", "results.json", "report.html", "report.md", "results.csv", "table.tex", "setup.md"),
        *("shared", "sft", "dft", "asft"),
    }
    rows = {row["label"]: row for row in results["rows"]}
    assert list(rows) == ["base", "sft", "dft", "asft"]
    assert rows["asft"]["change"]["about"] == "methods" and rows["sft"]["change"] == {"verdict": "baseline"}
    assert rows["asft"]["change"]["p_adjusted"] >= rows["asft"]["change"]["p"]
    assert rows["asft"]["seeds_done"] == [0, 1, 2] and len(rows["asft"]["target"]["by_seed"]) == 3
    assert "asft" in shown and "over 3 seeds" in shown and "retain" in shown
    assert "One run each" not in shown
    with (report.parent / "results.csv").open() as handle:
        lines = list(csv.DictReader(handle))
    assert float(lines[3]["target_mean"]) == pytest.approx(rows["asft"]["target"]["mean"])


def test_one_seed_speaks_of_models(recipe, worker, monkeypatch):
    _, results, shown = run(recipe, worker, monkeypatch, methods=["sft", "asft"])
    assert results["rows"][2]["change"]["about"] == "models"
    assert "One run each: these models, not these methods" in shown


def test_the_whole_is_resumable_and_a_failure_is_shown(recipe, worker, monkeypatch):
    arguments = {"methods": ["sft", "dft"], "seeds": 2}
    report, results, shown = run(recipe, worker, monkeypatch, orders={"crash": ["dft/seed-1"]}, **arguments)
    row = results["rows"][2]
    assert (row["failed"], row["seeds_done"], row["change"]["about"]) == (1, [0], "models")
    assert results["failures"][0]["folder"] == "dft/seed-1" and "the loss exploded" in shown
    again, results, shown = run(recipe, worker, monkeypatch, folder=report.parent, **arguments)
    assert again == report and not results["failures"]
    assert shown.count("already done") == 4
    assert results["rows"][2]["change"]["about"] == "methods"


def test_tuning_uses_the_best_on_validation_outside_the_budget(recipe, worker, monkeypatch):
    overrides = ["compare.tune={train.optimizer.lr: [1e-5, 3e-4], seeds: 1}"]
    _, results, _ = run(
        recipe, worker, monkeypatch, methods=["sft", "dft"], overrides=overrides, orders={"crash": ["tune/dft"]}
    )
    rows = {row["label"]: row for row in results["rows"]}
    assert rows["sft"]["learning_rate"] == 3e-4 and rows["sft"]["tuned"] == {"train.optimizer.lr": 3e-4}
    assert results["tuning"]["seconds"] > 0 and len(results["tuning"]["runs"]) == 4
    assert [one["chosen"] for one in results["tuning"]["runs"]] == [False, True, False, False]
    assert rows["dft"]["target"] is None and rows["dft"]["failed"] == 1


def test_a_base_as_baseline(recipe, worker, monkeypatch):
    _, results, _ = run(recipe, worker, monkeypatch, methods=["sft", "dft"], seeds=3, baseline="base")
    assert [row["change"] and row["change"]["about"] for row in results["rows"]] == [None, "methods", "methods"]
    assert results["rows"][1]["change"]["verdict"] == "differs"


def test_samples_put_disagreement_first(recipe, worker, monkeypatch):
    _, results, _ = run(recipe, worker, monkeypatch, methods=["sft", "asft"])
    shown = [sample for sample in results["samples"] if sample["set"] == "target"]
    assert len(shown) == 12 and [one["label"] for one in shown[0]["outputs"]] == ["base", "sft", "asft"]
    disagree = [len({one["score"] for one in sample["outputs"][1:]}) > 1 for sample in shown]
    assert disagree == sorted(disagree, reverse=True) and disagree[0]


def test_differences_besides_the_method_are_listed(recipe, worker, monkeypatch):
    _, results, _ = run(
        recipe, worker, monkeypatch, methods=["sft", "dft+wide"], overrides=["compare.learning_rate=advice"]
    )
    found = {one["path"]: one for one in results["differences"]}
    assert found["train.optimizer.lr"]["why"] == "besides"
    assert found["train.optimizer.lr"]["values"] == {"sft": 2e-4, "dft+wide": 5e-5}
    assert found["train.tuner.r"]["why"] == "method"
    assert "budget.epochs" not in found and "seed" not in found


def test_axes_give_rows_compared_at_their_own_values(recipe, worker, monkeypatch):
    overrides = ["compare.axes={data.train.limit: [50, 100]}"]
    _, results, _ = run(recipe, worker, monkeypatch, methods=["sft", "dft"], overrides=overrides)
    assert [row["label"] for row in results["rows"]] == [
        *("base, limit=50", "base, limit=100"),
        *("sft, limit=50", "dft, limit=50", "sft, limit=100", "dft, limit=100"),
    ]
    assert [row["change"]["verdict"] == "baseline" for row in results["rows"][2:]] == [True, False, True, False]


def test_a_mistake_the_base_meets_stops_everything(recipe, worker, monkeypatch):
    with pytest.raises(RunError, match="has no `messages`"):
        run(recipe, worker, monkeypatch, methods=["sft"], orders={"refuse": ["shared/base"]})


def test_no_success_at_all_is_an_error_with_the_log(recipe, worker, monkeypatch):
    with pytest.raises(RunError, match="No run succeeded") as caught:
        run(recipe, worker, monkeypatch, methods=["sft"], orders={"crash": ["sft/"]})
    assert caught.value.hint.endswith("log.txt")


def test_the_lock_repeats_the_comparison(recipe, worker, monkeypatch):
    report, *_ = run(recipe, worker, monkeypatch, methods=["sft", "dft"], seeds=[4, 7], baseline="dft")
    again = plan(report.parent / "lock.json")
    assert ([arm.label for arm in again.arms], again.seeds, again.baseline) == (["sft", "dft"], (4, 7), "dft")


def test_a_folder_of_something_else_is_left_alone(recipe, worker, monkeypatch):
    with pytest.raises(RunError, match="something else"):
        run(recipe, worker, monkeypatch, folder=recipe.parent, methods=["sft"])


def test_the_folder_of_another_comparison_is_left_alone(recipe, worker, monkeypatch):
    report, *_ = run(recipe, worker, monkeypatch, methods=["sft"])
    before = report.read_text()
    with pytest.raises(RunError, match="holds another comparison"):
        run(recipe, worker, monkeypatch, folder=report.parent, methods=["sft"], overrides=["data.max_tokens=99"])
    assert report.read_text() == before
    run(recipe, worker, monkeypatch, folder=report.parent, methods=["sft", "dft"], overrides=["budget.epochs=3"])


def test_choice_prefers_the_earlier_of_equals(recipe):
    overrides = ["compare.tune={train.optimizer.lr: [1e-5, 3e-4]}"]
    assert choose(plan(recipe, methods=["sft"], overrides=overrides), []) == {"sft": 0}
