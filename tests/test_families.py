"""Families are read from their base files; a user's part is recognised by its base class; former names are refused."""

import pytest

from luthier import parts
from luthier.errors import RecipeError
from luthier.families import families
from luthier.recipe.methods import slot_of_file
from luthier.recipe.settings import PARTS, slots

VERB = '''
"""The family of verbs."""
from typing import ClassVar
from luthier.parts import Part


class Verb(Part):
    """A step."""

    SLOT: ClassVar[str] = "verb"
    STARTS: ClassVar[bool] = False
    seconds: float = 1.0


class Training(Verb):
    """A step that trains."""

    UPDATES: ClassVar[bool] = True
'''


def plant(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_folder_with_a_base_file_is_a_family(tmp_path):
    verbs = {"steps/verbs/base.py": VERB, "steps/verbs/merge.py": "", "steps/verbs/_shared.py": "", "steps/run.py": ""}
    family = families(plant(tmp_path, verbs))["verb"]
    assert family.bases == ("Verb", "Training") and family.constants == ("STARTS", "UPDATES")
    assert [path.name for path in family.files(tmp_path)] == ["merge.py"]


def test_a_family_within_another_keeps_its_parts(tmp_path):
    head = 'from typing import ClassVar\n\n\nclass {name}:\n    SLOT: ClassVar[str] = "{slot}"\n'
    files = {
        "select/base.py": head.format(name="Outer", slot="outer"),
        "select/one.py": "",
        "select/deep/base.py": head.format(name="Inner", slot="inner"),
        "select/deep/two.py": "",
        "other/base.py": head.format(name="Third", slot="third") + '    FOLDER: ClassVar[str] = "parts"\n',
        "other/parts/three.py": "",
        "other/four.py": "",
        "plain/base.py": "class Base:\n    pass\n",
    }
    found = families(plant(tmp_path, files))
    stems = {slot: [path.stem for path in family.files(tmp_path)] for slot, family in found.items()}
    assert stems == {"outer": ["one"], "inner": ["two"], "third": ["three"]}


def test_a_second_base_class_below_a_familys_folder_lists_no_part_twice(tmp_path):
    head = 'from typing import ClassVar\n\n\nclass {name}:\n    SLOT: ClassVar[str] = "outer"\n'
    files = {
        "sets/base.py": head.format(name="Texts"),
        "sets/one.py": "",
        "sets/deep/base.py": head.format(name="Arrays"),
        "sets/deep/two.py": "",
    }
    family = families(plant(tmp_path, files))["outer"]
    assert set(family.bases) == {"Texts", "Arrays"}
    assert sorted(path.stem for path in family.files(tmp_path)) == ["one", "two"]


def test_every_slot_of_a_recipe_is_a_family():
    assert set(PARTS.values()) | {"subset", "dataset"} <= set(families())
    assert slots()[:3] == ("objective", "tuner", "selector") and set(slots()) == set(families())


def test_every_base_class_has_the_constants_that_it_declares():
    for family in families().values():
        assert "SLOT" not in family.constants and {"PAPER", "SETTINGS"} <= set(parts.constants_of(family.slot))


@pytest.mark.parametrize(
    "head, slot",
    [
        ("from luthier import CoupledObjective as Base", "objective"),
        ("from luthier import CoupledObjective", "objective"),
        ("from luthier.objectives.preference.base import LabelObjective", "objective"),
        ("from luthier.select.records.base import Subset", "subset"),
        ("from luthier.select.subset import Subset", "subset"),
        ("from luthier.engine.schedules.base import Schedule", "schedule"),
        ("from luthier.engine.optimizers.base import Optimizer", "optimizer"),
        ("from luthier.datasets.base import Dataset", "dataset"),
        ("from luthier.datasets.pictures.base import ArrayDataset", "dataset"),
        ("from luthier.evals.base import Metric", "metric"),
        ("from luthier.sampling.samplers.base import SamplerPart", "sampler"),
        ("from luthier.objectives.supervised.sft import SFT", "objective"),
        ("from luthier.select.rows.uds import UDS", "selector"),
    ],
)
def test_a_users_part_is_recognised(tmp_path, head, slot):
    base = head.split()[-1]
    file = tmp_path / "mine.py"
    file.write_text(f"{head}\n\n\nclass Mine({base}):\n    pass\n")
    assert slot_of_file(file) == slot
    file.write_text(f"{head}\n\n\nclass Helper({base}):\n    pass\n\n\nclass Mine(Helper):\n    pass\n")
    assert slot_of_file(file) == slot


def test_a_module_in_front_of_the_base_class(tmp_path):
    (tmp_path / "mine.py").write_text("import luthier\n\n\nclass Mine(luthier.Tuner):\n    pass\n")
    assert slot_of_file(tmp_path / "mine.py") == "tuner"


@pytest.mark.parametrize("base", ["Part", "dict", "Mine"])
def test_a_class_of_no_family_is_refused_with_the_base_classes(tmp_path, base):
    (tmp_path / "mine.py").write_text(f"from luthier import Part\n\n\nclass Mine({base}):\n    pass\n")
    with pytest.raises(RecipeError, match="cannot tell what kind of part Mine is") as error:
        slot_of_file(tmp_path / "mine.py")
    assert "Schedule" in str(error.value.hint) and "Subset" in str(error.value.hint)


OLD = "from luthier import TokenObjective\n\n\nclass Mine(TokenObjective):\n    {line}\n"


def test_a_former_name_of_a_constant_is_refused_once_nothing_declares_it(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text(OLD.format(line='OLDEN = ("weight",)'))
    assert parts.read_entry("objective", file).constants == {}
    monkeypatch.setattr(parts, "RENAMED_CONSTANTS", {"OLDEN": ("UNIT", "The values are the same.")})
    for slot in ("objective", "part"):
        with pytest.raises(RecipeError, match=r"mine.py:5: the constant `OLDEN` is called `UNIT` now"):
            parts.read_entry(slot, file)


def test_a_former_name_that_a_family_still_declares_is_not_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "RENAMED_CONSTANTS", {"UNIT": ("OTHER", "The values are the same.")})
    file = tmp_path / "mine.py"
    file.write_text(OLD.format(line='UNIT = "records"'))
    assert parts.read_entry("objective", file).constants == {"UNIT": "records"}


def test_renamed_constants_name_another_constant():
    assert all(old != new and old.isupper() and new.isupper() for old, (new, _) in parts.RENAMED_CONSTANTS.items())
