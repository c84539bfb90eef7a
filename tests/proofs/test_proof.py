import json

import pytest

from luthier.compare.plan import plan
from luthier.errors import RecipeError
from luthier.proofs.proof import read_proof
from luthier.proofs.results import FOLDER, committed, seen

TEXT = """about: small
recipe: {model: nano, data: {train: data.jsonl}}
claims:
  better: {text: it is better, measure: target, of: dft, against: sft, difference: "> 0.02"}
"""


@pytest.fixture
def written(tmp_path):
    (tmp_path / "dft.yaml").write_text(TEXT)
    return tmp_path


def commit(folder, *outcomes, **changed):
    claims = {str(n): {"verdict": {"outcome": outcome}} for n, outcome in enumerate(outcomes)}
    found = {"hash": read_proof(str(folder / "dft.yaml")).hash, "claims": claims, **changed}
    (folder / "dft.json").write_text(json.dumps(found))


def test_a_proof_is_read(written):
    proof = read_proof(str(written / "dft.yaml"))
    assert (proof.method, proof.about, proof.result.name) == ("dft", "small", "dft.json")
    assert proof.claims["better"].bound == (">", 0.02)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("about: small\n", "", "`about` is missing"),
        ("about: small\n", "about: small\nseeds: 3\n", "no key `seeds`"),
        ('"> 0.02"', "0.02", "claims.better.difference"),
        ("of: dft, ", "", "claims.better.of"),
        ("  better: {", "  better: [{", "not valid YAML"),
    ],
)
def test_mistakes_are_named(written, before, after, said):
    path = written / "dft.yaml"
    path.write_text(TEXT.replace(before, after))
    with pytest.raises(RecipeError, match=said):
        read_proof(str(path))


def test_no_proof_names_those_there_are():
    with pytest.raises(RecipeError, match="no proof of `max_los`") as caught:
        read_proof("max_los")
    assert "max_loss" in caught.value.hint


def test_marks(written):
    assert committed("sft", written).mark == "unproven"
    assert committed("dft", written).mark == "unproven"
    for outcomes, mark in ((["holds"], "proven"), (["holds", "fails"], "claim failed"), (["undecided"], "undecided")):
        commit(written, *outcomes)
        assert committed("dft", written).mark == mark


def test_a_changed_proof_makes_its_result_stale(written):
    commit(written, "holds")
    (written / "dft.yaml").write_text(TEXT.replace("0.02", "0.01"))
    found = committed("dft", written)
    assert found.mark == "stale"
    assert found.result is not None


def test_every_proof_of_the_package_can_be_read_and_its_result_is_of_it():
    for path in sorted(FOLDER.glob("*.yaml")):
        proof = read_proof(path.stem)
        compared = proof.recipe["compare"]
        names = {name.split("+")[0] for name in compared["methods"]} | {"base"}
        assert proof.method in names
        if "axes" in compared:
            names = {arm.label for arm in plan(dict(proof.recipe)).arms} | {"base"}
        for claim in proof.claims.values():
            assert {claim.of, claim.against or "base"} <= names
        if proof.result.is_file():
            assert committed(proof.method).mark != "stale", path
            assert set(committed(proof.method).result["claims"]) == set(proof.claims)


def test_seen_in_words():
    verdict = {"mean": 0.03123, "low": 0.01, "high": 0.05, "why": ""}
    assert seen({"difference": "> 0.02", "verdict": verdict}) == "difference 0.03123 (0.01 to 0.05), claimed > 0.02"
    assert seen({"value": "> 1", "verdict": verdict | {"mean": None, "why": "one seed"}}) == "one seed"
