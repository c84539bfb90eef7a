"""A user's part that uses a former name gets one error that names the new one, also through `luthier check`."""

import importlib
import importlib.util
import textwrap

import pytest

from luthier import parts
from luthier.errors import RecipeError

OBJECTIVE = """
from luthier import TokenObjective


class Mine(TokenObjective):
    \"\"\"A loss of the user's.\"\"\"

    {line}

    def token_loss(self, view):
        return -view.logprob
"""
TUNER = """
from luthier import Tuner


class Mine(Tuner):
    \"\"\"A tuner of the user's.\"\"\"

    {line}
"""
HOOK = "def {name}(self, *arguments):\n        return True"
CONSTANTS = [
    ("objective", OBJECTIVE, 'FACE = "token"', "FACE", "MODALITY"),
    ("objective", OBJECTIVE, 'HOLDS = ("the advantage",)', "HOLDS", "DETACHED"),
    ("tuner", TUNER, 'RESTORES = "base"', "RESTORES", "DISABLING_RESTORES_BASE"),
]
HOOKS = [
    ("objective", OBJECTIVE, HOOK.format(name="moves"), "moves", "has_gradient"),
    ("objective", OBJECTIVE, HOOK.format(name="scope"), "scope", "micro_batch_context"),
    ("tuner", TUNER, HOOK.format(name="around"), "around", "micro_batch_context"),
]
NAMES = pytest.mark.parametrize("slot, text, line, old, new", CONSTANTS + HOOKS, ids=lambda value: str(value)[:12])


@NAMES
def test_the_part_is_refused_when_a_recipe_names_it(tmp_path, slot, text, line, old, new):
    (tmp_path / "mine.py").write_text(text.format(line=line))
    with pytest.raises(RecipeError) as error:
        parts.build(slot, "./mine.py", tmp_path)
    assert f"`{old}`" in error.value.message
    assert f"`{new}`" in error.value.message + str(error.value.hint)
    assert "mine.py" in error.value.message


@NAMES
def test_the_check_names_the_new_name(command, here, slot, text, line, old, new):
    (here / "mine.py").write_text(text.format(line=line))
    answer = command("check", "./mine.py")
    assert answer.code == 2
    assert answer.error.count("error:") == 1
    assert f"`{old}`" in answer.error
    assert f"`{new}`" in answer.error


@pytest.mark.parametrize("line", ['FACE = "token"', 'FACE: str = "token"'])
def test_a_former_constant_of_a_base_class_in_the_same_file_is_refused(tmp_path, line):
    text = textwrap.dedent(
        f"""
        from luthier import TokenObjective


        class Shared(TokenObjective):
            {line}


        class Mine(Shared):
            def token_loss(self, view):
                return -view.logprob
        """
    )
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(RecipeError, match=r"mine\.py:6: the constant `FACE` is called `MODALITY` now"):
        parts.build("objective", "./mine.py", tmp_path)


def test_a_helper_class_may_use_any_name(tmp_path):
    (tmp_path / "mine.py").write_text(OBJECTIVE.format(line="") + "\n\nclass Elsewhere:\n    FACE = 1\n")
    assert parts.build("objective", "./mine.py", tmp_path).kind


def test_an_import_of_a_file_that_moved_leads_to_the_list_of_names(tmp_path):
    (tmp_path / "mine.py").write_text("from luthier.steps.ground import Ground\n" + OBJECTIVE.format(line=""))
    with pytest.raises(RecipeError, match=r"mine\.py:1 cannot be imported: ModuleNotFoundError") as error:
        parts.build("objective", "./mine.py", tmp_path)
    assert error.value.hint.startswith("`luthier.steps.ground` is `luthier.modalities.base` now. docs/renames.md lists")
    (tmp_path / "mine.py").write_text("\nfrom luthier.types import Trajectry\n" + OBJECTIVE.format(line=""))
    with pytest.raises(RecipeError, match=r"mine\.py:2 cannot be imported: ImportError: .*Trajectry") as error:
        parts.build("objective", "./mine.py", tmp_path)
    assert error.value.hint == "docs/renames.md lists the files and names that changed."


def test_every_module_that_moved_is_where_its_message_says():
    for old, new in parts.MOVED_MODULES.items():
        assert importlib.util.find_spec(new) is not None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(old)


def test_an_unknown_option_of_a_method_names_the_nearest(command, here):
    answer = command("check", "mine.yaml", "--show", "train.tuner={kind: lora, rank_stabilized: true}")
    assert answer.code == 2
    assert "no option `rank_stabilized`" in answer.error
    assert "rank_stabilised" in answer.error
