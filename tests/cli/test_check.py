PART = '''
"""A made-up loss."""
from luthier import TokenObjective


class Halved(TokenObjective):
    """Half the loss."""

    PAPER = "arXiv 0000.00000"
    power: float = 2.0

    def token_loss(self, view):
        return -view.logprob / 2
'''


def test_show_tells_every_value_and_its_origin(command, here):
    shown = command("check", "mine.yaml", "--show", "train.optimizer.lr=5e-6").out.splitlines()
    lines = {line.split()[0]: line for line in shown}
    assert lines["train.optimizer.lr"].split() == ["train.optimizer.lr", "5e-06", "command", "line"]
    assert lines["model.path"].endswith("recipe mine.yaml:1")
    assert lines["train.tuner.r"].endswith("default")


def test_the_doctor_sees_the_recipe(command, here, room):
    calls = room("luthier.steps.check_page.check_recipe")
    assert command("check", "mine.yaml", "seed=3", "--probe").code == 0
    (recipe, probe, *_), _ = calls[0]
    assert (recipe.settings.seed, probe) == (3, True)


def test_a_wrong_recipe_never_reaches_the_doctor(command, here, room):
    calls = room("luthier.steps.check_page.check_recipe")
    assert command("check", "mine.yaml", "budget={epochs: 1, tokens: 2}").code == 2
    assert calls == []


def test_methods_of_the_recipe_are_tried(command, here, room):
    calls = room("luthier.steps.check_page.check_recipe")
    (here / "warm.yaml").write_text(
        "about: x\nmethod: {train: {tuner: {r: 3}}}\nadvice: {train: {optimizer: {lr: 1}}}\n"
    )
    shown = command("check", "mine.yaml", "--methods", "warm").out
    assert "method warm: train.tuner.r = 3; train.optimizer.lr = 1 (advice)" in shown
    assert len(calls) == 1
    assert command("check", "mine.yaml", "compare.methods=[worm]").code == 2


def test_methods_that_do_not_apply_are_told(command, here):
    (here / "none.yaml").write_text("about: x\nmethod: {train: {tuner: nothing}}\n")
    shown = command("check", "mine.yaml", "--show", "--methods", "all")
    assert shown.code == 0
    assert "method none: does not apply" in shown.out
    assert command("check", "mine.yaml", "--show", "--methods", "none").code == 2


def test_a_part_file_shows_as_the_catalogue_would(command, here, room):
    calls = room("luthier.conformance.matrix.check_part")
    (here / "halved.py").write_text(PART)
    shown = command("check", "./halved.py").out
    assert "objective halved: Half the loss." in shown
    assert "arXiv 0000.00000" in shown
    assert "power = 2.0  [number]" in shown
    assert calls[0][0][0] == here / "halved.py"


def test_a_part_file_that_is_none(command, here):
    (here / "halved.py").write_text("class Halved: ...\n")
    result = command("check", "./halved.py")
    assert result.code == 2
    assert "cannot tell what kind of part" in result.error
