import copy

from luthier.report.sentences import findings, headline, learning_rate_rule, limitations, notes


def test_several_seeds_speak_of_methods(several):
    assert headline(several).startswith("On 60 held-out items, the mean score goes from ")
    assert "3 seeds" in headline(several)
    assert not any("One run each" in line for line in findings(several))


def test_one_seed_never_says_that_a_method_is_better(single):
    said = " ".join([headline(single), *findings(single), *notes(single), *limitations(single)])
    assert "One run each: these models, not these methods" in said
    assert "better" not in said.replace("score better and predict", "")
    assert "--seeds 3" in said


def test_a_difference_says_what_it_is_about(several, single):
    for results, words in (
        (several, "asft differs from sft"),
        (single, "These two models differ on these items: asft"),
    ):
        changed = copy.deepcopy(results)
        row = next(row for row in changed["rows"] if row["label"] == "asft")
        row["change"].update(verdict="differs", p_adjusted=0.004)
        assert any(line.startswith(words) and "p = 0.004 after Holm" in line for line in findings(changed))


def test_equal_is_never_claimed(several):
    changed = copy.deepcopy(several)
    for row in changed["rows"]:
        if row["change"] and "delta" in row["change"]:
            row["change"]["verdict"] = "n.s."
    line = next(line for line in findings(changed) if "not differ detectably" in line)
    assert line.startswith("dft and asft do not differ detectably from sft") and "reach as far as" in line


def test_learning_rate_rules(several):
    assert learning_rate_rule(several) == "the same for all (2e-4)"
    tuned = {**several, "learning_rate": {"rule": "tune", "candidates": [{"a.lr": 5e-5}, {"a.lr": 2e-4}]}}
    assert learning_rate_rule(tuned) == "tuned for each method on validation (a.lr in 5e-5, 2e-4)"
    assert "advice" in learning_rate_rule({**several, "learning_rate": {"rule": "advice", "candidates": []}})


def test_nothing_to_say_without_results(single):
    none = copy.deepcopy(single)
    for row in none["rows"]:
        row.update(target=None, change=None)
    assert "every run failed" in headline(none)
