import json

import pytest

from luthier.proofs import results
from luthier.proofs.proof import read_proof

TEXT = """about: small
recipe: {model: nano, data: {train: data.jsonl}, compare: {methods: [sft, dft]}}
claims:
  better: {text: it is better, measure: target, of: dft, against: sft, difference: "> 0.02"}
"""


def words(shown):
    """Without the width of columns."""
    return " ".join(shown.split())


@pytest.fixture
def result(here, monkeypatch):
    """A folder of proofs with one of dft, and a result of it that a run would write."""
    folder = here / "proofs"
    folder.mkdir()
    (folder / "dft.yaml").write_text(TEXT)
    monkeypatch.setattr(results, "FOLDER", folder)
    claim = {"text": "it is better", "difference": "> 0.02", "measure": "target", "of": "dft", "against": "sft"}
    verdict = {"outcome": "fails", "mean": 0.004, "low": -0.01, "high": 0.018, "why": "short"}
    return {
        "method": "dft",
        "mark": "claim failed",
        "hash": read_proof("dft").hash,
        "claims": {"better": claim | {"verdict": verdict}},
        "costs": {
            "sft": {"train_seconds": 10.0, "peak_memory_bytes": 100},
            "dft": {"train_seconds": 12.5, "peak_memory_bytes": 110},
        },
        "hardware": {"cpu": "Xeon", "gpu": None},
    }


@pytest.fixture
def ran(result, here, room):
    path = here / "proof.json"
    path.write_text(json.dumps(result))
    return room("luthier.compare.prove.prove", path)


def test_a_failed_claim_is_a_result(command, ran):
    found = command("prove", "dft", "--out", "there")
    assert found.code == 0
    assert "dft: claim failed (0 holds, 1 fails, 0 undecided of 1 claims)" in found.out
    assert ran[0][1]["overrides"] == ['out="there"']
    assert ran[0][0][1] is None


def test_the_result_is_put_beside_the_proof_only_on_demand(command, ran, here, result):
    command("prove", "dft")
    assert not (here / "proofs" / "dft.json").exists()
    assert "written" in command("prove", "dft", "--write").out
    assert json.loads((here / "proofs" / "dft.json").read_text()) == result
    listed = {
        line.split()[0]: line for line in command("methods").out.splitlines() if line.endswith((" by dft", " by sft"))
    }
    assert "claim failed (0 of 1)" in listed["dft"] and "unproven" in listed["sft"]


def test_resume_goes_on_in_its_folder(command, ran, here):
    assert command("prove", "dft", "--resume", "nowhere").code == 1
    (here / "1").mkdir()
    command("prove", "dft", "--resume", "1")
    assert ran[0][0][1].path.name == "1"


def test_no_proof(command, ran):
    found = command("prove", "sft")
    assert found.code == 2
    assert "no proof of `sft`" in found.error


def test_methods_shows_claims_and_cost(command, result, here):
    (here / "proofs" / "dft.json").write_text(json.dumps(result))
    shown = words(command("methods", "dft").out)
    assert "proof claim failed" in shown
    assert "claim fails: it is better; seen: difference 0.004 (-0.01 to 0.018), claimed > 0.02" in shown
    assert "cost time 1.25, memory 1.10 times that of sft (its proof, Xeon)" in shown
    (here / "proofs" / "dft.yaml").write_text(TEXT + "# changed\n")
    assert "proof stale" in words(command("methods", "dft").out)


def test_cost_of_what_has_no_sft_is_told_against_flow(command, result, here):
    result["costs"]["flow"] = result["costs"].pop("sft")
    (here / "proofs" / "dft.json").write_text(json.dumps(result))
    shown = words(command("methods", "dft").out)
    assert "cost time 1.25, memory 1.10 times that of flow (its proof, Xeon)" in shown


def test_methods_tells_what_goes_together_and_why_not(command, result, here):
    packaged = here / "packaged"
    patches = {
        "siglip": "{train: {objective: siglip}}",
        "half": "{train: {select: random}}",
        "slices": "{train: {tuner: [s2ft]}}",
        "whole": "{steps: {one: {do: train}}}",
    }
    for name, patch in patches.items():
        (packaged / f"{name}.yaml").write_text(f"about: x\nmethod: {patch}\n")
    shown = words(command("methods", "dft").out)
    assert "may go with half, slices, whole (" in shown
    assert "not with sft, siglip (both write train.objective.kind)" in shown
    assert "not with siglip (of contrastive policies; this one is of language policies)" in words(
        command("methods", "half").out
    )
