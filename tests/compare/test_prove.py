"""A proof through the fake worker, whose dft is better than sft, and the measures of a run's folder."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from luthier.compare.prove import measure, prove
from luthier.errors import RecipeError
from luthier.proofs.proof import read_proof
from luthier.run_folder import read_json

CLAIMS = {
    "better": {"text": "t", "measure": "target", "of": "asft", "against": "base", "difference": "> 0.2"},
    "worse": {"text": "t", "measure": "target", "of": "asft", "against": "base", "difference": "< 0"},
    "same_tokens": {"text": "t", "measure": "train.target_tokens", "of": "asft", "against": "sft", "ratio": "< 1.01"},
    "too_close": {"text": "t", "measure": "target", "of": "asft", "against": "sft", "difference": "> 0.15"},
}


@pytest.fixture
def written(recipe):
    def write(claims=CLAIMS, **compare):
        compare = {"methods": ["sft", "asft"], "seeds": 3, **compare}
        data = {"train": str(recipe.parent / "data.jsonl")}
        proof = {"about": "a fake", "recipe": {"model": "nano", "data": data, "compare": compare}, "claims": claims}
        path = recipe.parent / "asft.yaml.d" / "asft.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(proof))
        return read_proof(str(path))

    return write


def run(proof, worker, folder=None):
    console = Console(file=io.StringIO(), width=200)
    path = prove(proof, folder, console, command=worker)
    return path, read_json(path), console.file.getvalue()


def test_claims_are_judged_and_written(written, worker):
    proof = written()
    path, found, shown = run(proof, worker)
    assert path.parent.parent.name == "prove-asft"
    outcomes = {name: claim["verdict"]["outcome"] for name, claim in found["claims"].items()}
    assert outcomes == {"better": "holds", "worse": "fails", "same_tokens": "holds", "too_close": "undecided"}
    assert found["mark"] == "claim failed"
    assert (found["hash"], found["seeds"], found["method"]) == (proof.hash, [0, 1, 2], "asft")
    assert set(found["claims"]["better"]["by_seed"]["asft"]) == {"0", "1", "2"}
    assert found["costs"]["sft"]["train_seconds"] == 81
    assert found["versions"] and found["hardware"] and found["seconds"] > 0
    assert "proof of asft: claim failed" in shown


def test_it_goes_on_where_it_was(written, worker):
    proof = written()
    path, first, _ = run(proof, worker)
    (path.parent / "asft" / "seed-1" / "run.json").unlink()
    again, second, _ = run(proof, worker, path.parent)
    assert again == path and second == first
    starts = {
        cell: (path.parent / cell / "started.txt").read_text().count("started")
        for cell in ("sft/seed-1", "asft/seed-1")
    }
    assert starts == {"sft/seed-1": 1, "asft/seed-1": 2}


def test_failed_runs_leave_a_claim_undecided(written, worker, monkeypatch):
    monkeypatch.setenv("FAKE_ORDERS", json.dumps({"crash": ["asft/seed-1", "asft/seed-2"]}))
    _, found, _ = run(written(), worker)
    assert found["claims"]["better"]["verdict"]["outcome"] == "undecided"
    assert found["failures"] == ["asft/seed-1", "asft/seed-2"]


@pytest.mark.parametrize(
    ("claim", "said", "hint"),
    [
        ({"measure": "train.tokes"}, "train.tokes", "target_tokens"),
        ({"measure": "retian"}, "retian", "evaluation"),
        ({"measure": "train.data"}, "no number", ""),
        ({"measure": "metrics.reward.last"}, "metrics.reward.last", "nll"),
        ({"measure": "metrics.nll.middle"}, "first, last", ""),
        ({"measure": "kept.shuffled"}, "no selector", ""),
        ({"measure": "answers.words"}, "answers.words", "answers.length"),
        ({"of": "dft"}, "no row `dft`", "sft, asft, base"),
    ],
)
def test_what_is_not_there_is_said(written, worker, claim, said, hint):
    wanted = {"text": "t", "measure": "target", "of": "asft", "value": "> 0", **claim}
    with pytest.raises(RecipeError, match=said) as caught:
        run(written({"one": wanted}), worker)
    assert hint in (caught.value.hint or "")


@pytest.fixture
def folder(tmp_path):
    """A run's folder with eight updates, of which a selector kept records of two kinds."""
    kept = [{"event": "kept", "update": 1, "records": ["a", "b"]}, {"event": "kept", "update": 2, "records": ["a"]}]
    lines = [{"update": update, "reward": update / 8, "loss": None} for update in range(1, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*kept, *lines]))
    answers = [{"set": "target", "id": str(n), "prediction": "x" * n, "score": n % 2} for n in (1, 2, 3, 4)]
    answers.append({"set": "retain", "id": "9", "prediction": "", "score": 1.0})
    (tmp_path / "evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    further = {"flow loss, target": 0.5, "digit_2, target": 0.25}
    (tmp_path / "run.json").write_text(json.dumps({"train": {"tokens": 12}, "evaluation": {"further": further}}))
    rows = [{"id": "a", "prompt": "p", "completion": "c", "bad": True}, {"id": "b", "prompt": "q", "completion": "d"}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lock = {"base": str(tmp_path), "recipe": {"data": {"train": "data.jsonl"}}}
    (tmp_path / "task.json").write_text(json.dumps({"recipe": lock}))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target", 0.5),
        ("retain", 1.0),
        ("train.tokens", 12),
        ("answers.length", 2.5),
        ("evaluation.further.flow loss, target", 0.5),
        ("evaluation.further.digit_2, target", 0.25),
        ("metrics.reward.first", 1.5 / 8),
        ("metrics.reward.last", 7.5 / 8),
        ("metrics.reward.mean", 4.5 / 8),
        ("metrics.reward.rise", 6 / 8),
        ("kept.bad", 2 / 3),
    ],
)
def test_measures(folder, name, value):
    found = measure(name, {3: folder})
    assert found.by_seed == {3: pytest.approx(value)}
    assert bool(found.items) == (name in ("target", "retain"))


def test_a_column_that_no_record_has(folder):
    with pytest.raises(RecipeError, match=r"kept\.shuffled") as caught:
        measure("kept.shuffled", {0: folder})
    assert "completion" in caught.value.hint


@pytest.mark.slow
def test_a_real_proof_with_two_seeds_ends_in_verdicts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    proof = read_proof("max_loss")
    compared = {**proof.recipe["compare"], "seeds": 2}
    proof = replace(proof, recipe={**proof.recipe, "compare": compared})
    path = prove(proof, None, Console(file=io.StringIO()))
    found = read_json(path)
    assert set(found["claims"]) == set(proof.claims)
    seen = found["claims"]["falls_for_wrong_labels"]["verdict"]
    assert seen["mean"] > 0.1 and seen["low"] < seen["mean"] < seen["high"]
    assert found["failures"] == []
