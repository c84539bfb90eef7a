"""Objectives, tuners and selectors train with each other or are refused in words; what does neither is a fault."""

from itertools import combinations
from pathlib import Path

import pytest

from luthier import parts
from luthier.conformance import pairs as conformance_pairs
from luthier.conformance.pairs import all_pairs, attempt, catalogued, covering, trials
from luthier.conformance.support_page import pair_tables
from luthier.errors import RecipeError, RunError
from luthier.objectives.supervised.sft import SFT
from support.changed import changed_files, git, has_turn


def test_combinations_whose_turn_it_is_train_or_are_refused_in_words():
    """Those with a part that changed, and a share of the others: `make test-full` tries every pair."""
    commit = git("rev-parse", "HEAD") or ""
    names = catalogued()
    members = [(slot, name) for slot, listed in names.items() for name in listed]
    changed = {member for member in members if parts.find(*member).path in changed_files()}
    chosen = [triple for triple in covering(names) if changed.intersection(triple) or has_turn(str(triple), commit)]
    attempts = [attempt(triple) for triple in chosen]
    assert chosen and [trial.message for trial in attempts if trial.verdict == "fault"] == []


@pytest.mark.slow
def test_every_pair_trains_or_is_refused_in_words():
    names = catalogued()
    by_pair = trials(names)
    assert [trial.message for trial in by_pair.values() if trial.verdict == "fault"] == []
    assert set(all_pairs(names)) <= set(by_pair)
    assert all(trial.message for trial in by_pair.values() if trial.verdict == "refused")
    page = Path(__file__).parents[2] / "docs" / "support.md"
    assert "\n".join(pair_tables(by_pair)) in page.read_text(), "run `make support`"


def test_the_triples_hold_every_pair_and_are_few():
    names = {"objective": ["a", "b", "c", "d"], "tuner": ["e", "f"], "selector": ["g", "h", "i"]}
    triples = list(covering(names))
    assert {pair for triple in triples for pair in combinations(triple, 2)} == set(all_pairs(names))
    assert len(triples) <= 13  # twelve is the least: four objectives by three selectors


@pytest.fixture
def loss(monkeypatch):
    """Puts a loss of our own in the place of sft's."""
    return lambda token_loss: monkeypatch.setattr(SFT, "token_loss", token_loss)


SFT_AND_FULL = (("objective", "sft"), ("tuner", "full"))


def test_a_refusal_before_the_first_update_is_no_fault(loss):
    def refuses(self, view):
        raise RecipeError("This cannot be.", "Do otherwise.")

    loss(refuses)
    assert attempt(SFT_AND_FULL) == conformance_pairs.Trial("refused", "This cannot be.")


def test_a_refusal_in_the_middle_is_a_fault(loss):
    def breaks(self, view):
        if view.update.index == 2:
            raise RunError("Now it cannot be.")
        return -view.logprob

    loss(breaks)
    trial = attempt(SFT_AND_FULL)
    assert trial.verdict == "fault" and "broke off after 1 update(s)" in trial.message


def test_a_traceback_a_nan_and_a_standstill_are_faults(loss):
    for token_loss, word in (
        (lambda self, view: view.nonsense, "AttributeError"),
        (lambda self, view: view.logprob * float("nan"), "not a finite number"),
        (lambda self, view: view.logprob * 0, "nothing moved"),
    ):
        loss(token_loss)
        trial = attempt(SFT_AND_FULL)
        assert trial.verdict == "fault" and word in trial.message and trial.message.startswith("sft + full: ")


def test_a_pair_of_another_kind_of_model_is_refused_by_name():
    trial = attempt((("objective", "siglip"), ("selector", "max_loss")))
    assert trial.verdict == "refused" and "`max_loss` works on models of the modality `language`" in trial.message
