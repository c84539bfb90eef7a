"""docs/support.md is what the matrix says today."""

from dataclasses import replace
from pathlib import Path

import pytest

from luthier.conformance import support_page as support
from luthier.conformance.base import CheckOutcome
from luthier.conformance.pairs import Trial, all_pairs, catalogued

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
STALE = "the parts have changed: run `make support`"


def test_the_page_is_of_todays_parts():
    assert f"Catalogue: `{support.fingerprint()}`" in PAGE.read_text(), STALE


def test_another_option_makes_the_page_stale(monkeypatch):
    before, catalogue = support.fingerprint(), support.parts.catalogue

    def with_one_more(slot):
        first, *others = catalogue(slot)
        return replace(first, options=(*first.options, "more")) if slot == "tuner" else first, *others

    monkeypatch.setattr(support.parts, "catalogue", with_one_more)
    assert support.fingerprint() != before


@pytest.mark.slow
def test_the_page_says_what_the_matrix_says(capsys):
    support.main()
    assert capsys.readouterr().out == PAGE.read_text(), STALE


def test_a_reason_is_a_footnote_and_told_once():
    by_pair = {pair: Trial("yes") for pair in all_pairs(catalogued())}
    for tuner in ("lora", "s2ft"):
        by_pair[("objective", "sft"), ("tuner", tuner)] = Trial("refused", "It cannot be.")
    text = "\n".join(support.pair_tables(by_pair))
    assert text.count("It cannot be.") == 1 and "1. It cannot be." in text
    row = next(line for line in text.splitlines() if line.startswith("| sft |"))
    assert row.count("refused (1)") == 2


def test_a_check_that_fails_stands_out_and_one_that_is_not_there_is_empty():
    outcomes = {
        "a": [CheckOutcome("resume", False, "why"), CheckOutcome("ranks", True, "")],
        "b": [CheckOutcome("ranks", True, "")],
    }
    lines = "\n".join(support.check_table("objective", outcomes)).splitlines()
    assert "| a | **no** | yes |" in lines and "| b |  | yes |" in lines
