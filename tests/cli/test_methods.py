import pytest

from luthier import parts
from luthier.families import families


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
    assert "  small  unproven  a small adapter" in shown
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
    assert "r: int = 16" in shown


def test_a_part_tells_paper_options_and_file(command, packaged):
    shown = command("methods", "adamw").out
    assert "arXiv 1711.05101" in shown
    assert "weight_decay: float = 0.0" in shown
    assert "adamw.py" in shown


def test_a_broken_method_is_named(command, packaged, here):
    (packaged / "bad.yaml").write_text("about: x\nmethod: {trian: 1}\n")
    result = command("methods")
    assert result.code == 2
    assert "bad.yaml:2" in result.error
