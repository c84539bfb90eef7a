"""The rules of the house, checked on the house. tests/house/test_rules.py shows that each rule can fail."""

from pathlib import Path

import pytest

from house import imports, links, names, parts_rules, text_rules
from luthier.families import families
from luthier.parts import catalogue

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "luthier"
MOST_NAMELESS = 0
MOST_VAGUE = 75
FREE = ("errors.py", "families.py", "keyed.py", "types.py", "options.py", "parts.py", "update.py", "run_folder.py")
TORCH_FREE = (*FREE, "stats.py", "__init__.py", "recipe", "report", "cli")
SLOTS = {slot: family.folders for slot, family in families().items()}


def check(faults):
    assert not faults, "\n" + "\n".join(str(fault).replace(f"{ROOT}/", "") for fault in faults)


def test_rooms_import_only_lower_rooms():
    check(imports.import_faults(PACKAGE))


def test_no_circle_of_files():
    check(imports.cycle_faults(PACKAGE))


def test_a_public_class_name_stands_once():
    check(names.class_faults(PACKAGE, SLOTS))


def test_variables_say_what_they_hold():
    """The bounds only fall: whoever brings a count down lowers its bound."""
    nameless = names.nameless(PACKAGE, names.NAMELESS)
    vague = names.nameless(PACKAGE, names.NO_BETTER)
    assert nameless.total() <= MOST_NAMELESS, nameless
    assert vague.total() <= MOST_VAGUE, vague


def test_no_package_is_a_tenth_of_the_code():
    check(text_rules.size_faults(PACKAGE, 0.1))


def test_parts_are_named_documented_and_tested():
    check(parts_rules.name_faults(ROOT, PACKAGE, SLOTS))


def test_every_option_of_a_part_is_read():
    check(parts_rules.option_faults(PACKAGE, SLOTS))


def test_every_option_of_a_part_is_described():
    check(parts_rules.description_faults(PACKAGE, SLOTS))


def test_no_global_randomness_in_objectives_and_selection():
    check(parts_rules.random_faults([PACKAGE / "objectives", PACKAGE / "select"]))


@pytest.mark.parametrize("slot", SLOTS)
def test_the_catalogue_reads_every_part(slot):
    files = parts_rules.part_files(PACKAGE, SLOTS[slot])
    assert sorted(path.stem for path in files) == [entry.name for entry in catalogue(slot)]


def test_nothing_torch_is_needed_to_look_at_parts_recipes_and_reports():
    paths = [path for rooms in SLOTS.values() for path in parts_rules.part_files(PACKAGE, rooms)]
    for name in TORCH_FREE:
        paths += sorted((PACKAGE / name).rglob("*.py")) if (PACKAGE / name).is_dir() else [PACKAGE / name]
    check(imports.torch_faults(SOURCE, imports.module_names(PACKAGE, paths)))


def test_links_of_the_documentation_lead_somewhere():
    check(links.link_faults(ROOT))


def test_files_and_functions_are_short():
    check(text_rules.length_faults([SOURCE, ROOT / "tests", ROOT / "bench"]))


def test_no_notes_to_oneself():
    check(text_rules.leftover_faults([SOURCE, ROOT / "tests", ROOT / "bench"]))


def test_no_names_of_one_machine():
    check(text_rules.machine_faults(ROOT))


def test_one_version():
    check(text_rules.version_faults(ROOT))
