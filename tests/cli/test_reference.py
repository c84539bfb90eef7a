"""The option tables of the documentation."""

from pathlib import Path

import pytest

from luthier import parts
from luthier.cli import reference
from luthier.errors import RecipeError
from luthier.families import families

DOCS = Path(__file__).resolve().parents[2] / "docs"
STALE = "before\n\n<!-- options:lora -->\n| option |\n<!-- /options -->\n\nafter\n"


def test_the_tables_of_the_documentation_are_current():
    for path, text in reference.pages(DOCS).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is not current: run `make reference`"


@pytest.mark.parametrize("slot", ["objective", "tuner"])
def test_pages_of_methods_have_their_table_from_the_part(slot):
    for entry in parts.catalogue(slot):
        text = (DOCS / "methods" / f"{entry.name}.md").read_text(encoding="utf-8")
        assert (f"<!-- options:{entry.name} -->" in text) == bool(entry.described), entry.name
        assert "| option | default |" not in text, f"{entry.name}: a table kept by hand"


def test_all_parts_stand_on_their_page():
    page = reference.parts_page(DOCS)
    for slot in families():
        section = page.partition(f"## {slot}\n")[2].partition("\n## ")[0]
        for entry in parts.catalogue(slot):
            assert f"### `{entry.name}`\n" in section
            assert all(f"| `{option.name}` | {option.takes} |" in section for option in entry.described)
    assert "| `reference` | text | required |" in page


def test_a_table_is_written_anew_and_the_text_around_it_stays():
    text = reference.with_tables(STALE, Path("page.md"))
    assert text.startswith("before\n\n<!-- options:lora -->\n\n| option | takes | default | meaning |\n")
    assert "| `r` | whole number ≥ 1 | `16` | Rank" in text
    assert text.endswith("|\n\n<!-- /options -->\n\nafter\n")
    assert reference.with_tables(text, Path("page.md")) == text


def test_a_table_of_a_name_in_several_slots_names_the_slot():
    text = STALE.replace("options:lora", "options:metric/exact")
    assert "| `ignore_case` | true or false |" in reference.with_tables(text, Path("page.md"))
    with pytest.raises(RecipeError, match=r"page\.md: several parts are called `exact`") as error:
        reference.with_tables(STALE.replace("options:lora", "options:exact"), Path("page.md"))
    assert error.value.hint == "Write one of reward/exact, metric/exact."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (STALE.replace("options:lora", "options:lorra"), "there is no part called `lorra`"),
        (STALE.replace("options:lora", "options:objective/lora"), "there is no part called `objective/lora`"),
        (STALE.replace("<!-- /options -->", ""), "<!-- options:lora --> is not closed"),
        (STALE.replace("<!-- /options -->", "<!-- options:dft -->\n<!-- /options -->"), "is not closed"),
    ],
)
def test_markers_that_mean_nothing_are_named(text, message):
    with pytest.raises(RecipeError, match=message):
        reference.with_tables(text, Path("page.md"))


def test_writing_names_the_pages_that_changed(tmp_path, capsys):
    page = tmp_path / "methods" / "lora.md"
    page.parent.mkdir()
    page.write_text(STALE)
    plain = tmp_path / "plain.md"
    plain.write_text("no marker\n")
    reference.main(tmp_path)
    assert capsys.readouterr().out.split() == [str(tmp_path / "reference" / "parts.md"), str(page)]
    assert "`rank_stabilised`" in page.read_text() and plain.read_text() == "no marker\n"
    reference.main(tmp_path)
    assert capsys.readouterr().out == ""
