import pytest

from luthier import parts
from luthier.cli.catalogue import cost_in_proof, evidence, grouped, needs_of
from luthier.families import families
from luthier.parts import PACKAGE
from luthier.proofs.results import Committed


@pytest.fixture
def packaged(here):
    """The package's folder of methods, with one more."""
    folder = here / "packaged"
    (folder / "small.yaml").write_text(
        "about: a small adapter\nmethod: {train: {tuner: {kind: lora, r: 8}}}\nadvice: {budget: {epochs: 3}}\n"
    )
    return folder


def test_the_list_holds_methods_and_parts(command, packaged):
    shown = command("methods").out
    lines = shown.splitlines()
    listed = lines[lines.index("You have prompts with their answers") + 1 :]
    small = next(line for line in listed if line.startswith("  small "))
    assert small.split(maxsplit=4) == ["small", "prompt,", "answer", "unproven", "a small adapter"]
    for slot in families():
        for entry in parts.catalogue(slot):
            assert f"  {entry.name} " in shown


def test_own_methods_are_listed(command, packaged, here):
    (here / "own.yaml").write_text("about: mine alone\nmethod: {seed: 1}\n")
    assert "mine alone" in command("methods").out


def test_a_method_tells_what_it_sets_and_its_parts(command, packaged):
    shown = command("methods", "small").out
    assert "sets         train.tuner.r = 8" in shown
    assert "advises      budget.epochs = 3" in shown
    assert str(packaged / "small.yaml") in shown
    assert "tuner lora: " in shown
    assert "r = 16 " in shown


def test_a_part_tells_paper_options_and_file(command, packaged):
    shown = command("methods", "adamw").out
    assert "arXiv 1711.05101" in shown
    assert "weight_decay = 0.0" in shown
    assert "adamw.py" in shown


def test_a_broken_method_is_named(command, packaged, here):
    (packaged / "bad.yaml").write_text("about: x\nmethod: {trian: 1}\n")
    result = command("methods")
    assert result.code == 2
    assert "bad.yaml:2" in result.error


OWN = """
from pydantic import Field

from luthier.rewards.base import Reward


class Own(Reward):
    bonus: float = Field(0.5, ge=0, description="Worth of an answer that says why. " "Larger asks for reasons.")
    bare: int = 3
"""


def test_options_are_a_table_with_default_meaning_and_range(command, packaged, here, monkeypatch):
    (here / "own.py").write_text(OWN)
    monkeypatch.setenv("COLUMNS", "80")
    shown = command("methods", "own.py").out
    assert "    bonus = 0.5     Worth of an answer that says why. Larger asks for reasons.\n" in shown
    assert "                    [number ≥ 0]\n    bare = 3        [whole number]\n" in shown
    assert "    seconds = 10.0  Seconds allowed for one answer" in shown  # its family's
    assert max(len(line) for line in shown.splitlines() if line.startswith("    ")) <= 80


def test_a_long_default_has_a_line_of_its_own(command, packaged, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = command("methods", "loramoe").out
    assert "    targets = [gate_proj, up_proj, down_proj]\n" in shown
    assert "    r = 4                " in shown
    assert "    limit (required)" in command("methods", "overlong").out


def test_the_methods_of_the_package_stand_with_what_their_data_need():
    groups = {heading: {line.name: line for line in lines} for heading, lines in grouped(PACKAGE).items()}
    expected = {
        "prompts with their answers": {"sft", "dft", "asft", "s2ft", "loramoe"},
        "pairs of a chosen and a rejected answer": {"dpo", "ipo", "orpo", "simpo"},
        "answers that are each labelled good or bad": {"kto"},
        "prompts whose answers can be checked, or a reward": {"grpo", "ppo", "bread", "fare", "s3ft", "grape"},
        "more records than you want to train on": {"uds", "rho", "random", "max_loss", "s2l"},
        "a denoiser and cached latents": {"flow", "diffusion_nft"},
        "encoders and pairs of images and texts": {"siglip"},
    }
    assert list(groups) == [f"You have {what}" for what in expected]
    for what, names in expected.items():
        assert names <= set(groups[f"You have {what}"])
    lines = {name: line for group in groups.values() for name, line in group.items()}
    assert lines["dpo"].needs == "prompt, chosen, rejected, reference" and "reference" not in lines["simpo"].needs
    assert lines["bread"].needs == "prompt, reward, answer" and lines["fare"].needs == "prompt, reward"
    assert lines["diffusion_nft"].needs == "latent, conditions, reward" and "reference" in lines["rho"].needs


def test_a_cost_is_shown_only_where_the_proof_measured_it_beside_the_plain_method():
    costs = {"sft": {"train_seconds": 10.0}, "dft": {"train_seconds": 12.5}, "uds": {"train_seconds": None}}
    claims = {"one": {"verdict": {"outcome": "holds"}}, "other": {"verdict": {"outcome": "undecided"}}}
    proof = Committed("undecided", {"costs": costs, "claims": claims})
    shown = [cost_in_proof(name, proof) for name in ("dft", "sft", "uds", "asft")]
    assert shown == ["1.25×", "", "", ""] and evidence(proof) == "undecided (1 of 2)"
    alone = Committed("proven", {"costs": {"dft": {"train_seconds": 12.5}}, "claims": {}})
    assert cost_in_proof("dft", alone) == "" and evidence(Committed("unproven")) == "unproven"


def test_own_parts_are_grouped_by_their_family(tmp_path):
    (tmp_path / "base.py").write_text('class Family:\n    NEEDS: ClassVar[tuple[str, ...]] = ("labels",)\n')
    (tmp_path / "mine.py").write_text("class Mine(Family):\n    pass\n")
    assert needs_of(parts.read_entry("objective", tmp_path / "mine.py")) == ("labels",)
    (tmp_path / "other.py").write_text('class Other(Family):\n    NEEDS = ("pairs",)\n')
    assert needs_of(parts.read_entry("objective", tmp_path / "other.py")) == ("pairs",)
