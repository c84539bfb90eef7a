import math
import random

import pytest

from luthier import stats

# Two-sided p and 97.5% quantiles of Student's t (R 4.3 `pt`, `qt`; the same in scipy 1.17).
STUDENT_P = [(2.0, 4, 0.11611652351681), (2.7764451051978, 4, 0.05), (12.706204736175, 1, 0.05), (0.5, 30, 0.62072300)]
QUANTILES = [(1, 12.706204736175), (2, 4.302652729749), (4, 2.776445105198), (30, 2.042272456301), (400, 1.965912343)]


@pytest.mark.parametrize(("t", "degrees", "expected"), STUDENT_P)
def test_student_p_hard_coded(t, degrees, expected):
    assert stats.student_p(t, degrees) == pytest.approx(expected, abs=1e-8)
    assert stats.student_p(-t, degrees) == stats.student_p(t, degrees)


@pytest.mark.parametrize(("degrees", "expected"), QUANTILES)
def test_student_quantile_hard_coded(degrees, expected):
    assert stats.student_quantile(0.975, degrees) == pytest.approx(expected, rel=1e-9)
    assert stats.student_quantile(0.025, degrees) == pytest.approx(-expected, rel=1e-9)


def test_student_against_scipy():
    theirs = pytest.importorskip("scipy.stats").t
    for degrees in (1, 2, 3, 4, 7.5, 30, 400, 5000):
        for t in (0.0, 0.01, 0.3, 1.0, 2.0, 5.0, 20.0, -1.3):
            assert stats.student_p(t, degrees) == pytest.approx(2 * theirs.sf(abs(t), degrees), rel=1e-9, abs=1e-300)
        for probability in (0.6, 0.9, 0.995, 0.001):
            assert stats.student_quantile(probability, degrees) == pytest.approx(theirs.ppf(probability, degrees))


def test_incomplete_beta_against_scipy():
    theirs = pytest.importorskip("scipy.special").betainc
    for a, b, x in [(0.5, 2, 0.1), (2, 0.5, 0.99), (30, 40, 0.4), (1, 1, 0.25), (200, 0.5, 0.999)]:
        assert stats.incomplete_beta(x, a, b) == pytest.approx(theirs(a, b, x), rel=1e-10)
    assert (stats.incomplete_beta(0, 2, 3), stats.incomplete_beta(1, 2, 3)) == (0.0, 1.0)


def test_wilson_hard_coded_and_at_the_ends():
    found = stats.wilson(0.5, 10)
    assert (found.low, found.high) == (pytest.approx(0.236593), pytest.approx(0.763407, abs=1e-6))
    assert stats.wilson(0.0, 20).low == 0 and stats.wilson(0.0, 20).high == pytest.approx(0.161125, abs=1e-5)
    assert stats.wilson(1.0, 20).high == 1


def test_holm():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.5, 0.9]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_difference_is_student_over_seeds_when_seeds_dominate():
    """Constant items: the item variance is nil and the rule is the textbook two-sample t test."""
    first, second = [0.60, 0.64, 0.68], [0.70, 0.78, 0.74]
    found = stats.difference([[s] * 50 for s in first], [[s] * 50 for s in second])
    expected = math.sqrt((0.0016 + 0.0016) / 3)
    assert found.about == "methods"
    assert found.delta == pytest.approx(0.10)
    assert found.standard_error == pytest.approx(expected)
    assert found.high - found.delta == pytest.approx(2.776445105 * expected)
    scipy = pytest.importorskip("scipy.stats")
    assert found.p == pytest.approx(scipy.ttest_ind(second, first).pvalue)


def test_difference_takes_the_item_variance_when_it_is_larger():
    baseline = [[0, 1, 0, 1, 0, 1, 0, 1]] * 3
    other = [[1, 1, 1, 1, 1, 1, 0, 1]] * 3  # the seeds agree exactly
    found = stats.difference(baseline, other)
    changes = [1, 0, 1, 0, 1, 0, 0, 0]
    mean = sum(changes) / 8
    expected = math.sqrt(sum((c - mean) ** 2 for c in changes) / 7 / 8)
    assert found.standard_error == pytest.approx(expected)
    assert found.p == pytest.approx(stats.student_p(mean / expected, 4))
    assert (found.wins, found.losses) == (3, 0)


def test_items_are_averaged_over_seeds_before_their_variance():
    """Seeds that disagree on items but not in their means must not count as item variance S times over."""
    baseline = [[0, 0, 0, 0]] * 2
    other = [[1, 0, 1, 0], [0, 1, 0, 1]]
    found = stats.difference(baseline, other)
    assert found.delta == pytest.approx(0.5)
    assert found.standard_error == 0.5 / 4  # every item moved by exactly one half: only the floor is left


def test_unequal_numbers_of_seeds():
    first, second = [[0.5] * 9, [0.6] * 9, [0.7] * 9], [[0.8] * 9, [0.9] * 9]
    found = stats.difference(first, second)
    expected = math.sqrt(0.01 / 3 + 0.005 / 2)
    assert found.standard_error == pytest.approx(expected)
    assert found.p == pytest.approx(stats.student_p(0.25 / expected, 3))


def test_an_untrained_baseline_has_no_seed_variance():
    found = stats.difference([[0.1] * 30], [[s] * 30 for s in (0.5, 0.6, 0.7)], untrained=True)
    assert found.about == "methods"
    assert found.standard_error == pytest.approx(math.sqrt(0.01 / 3))
    assert found.p == pytest.approx(stats.student_p(found.delta / found.standard_error, 2))


def test_one_seed_speaks_of_models_by_the_exact_test():
    baseline = [[0] * 9 + [1] + [1] * 20]
    other = [[1] * 9 + [0] + [1] * 20]
    found = stats.difference(baseline, other)
    assert found.about == "models"
    assert found.p == pytest.approx(2 * 11 / 1024)  # 9 of 10 moved items: two-sided binomial
    assert (found.wins, found.losses) == (9, 1)
    assert stats.difference(baseline, [other[0]] * 3).about == "models"


def test_a_perfect_jump_keeps_some_doubt():
    found = stats.difference([[0.0] * 40] * 3, [[1.0] * 40] * 3)
    assert found.low < 1 and found.p > 0


def test_difference_refuses_other_items():
    with pytest.raises(ValueError):
        stats.difference([[1, 0]], [[1, 0, 1]])
    with pytest.raises(ValueError):
        stats.difference([], [[1]])


def test_sign_flip_exact_and_drawn_agree():
    changes = [0.1, -0.2, 0.3, 0.25, 0.5, -0.15, 0.35, 0.0, 0.45, 0.05, 0.22, -0.31, 0.12, 0.6, 0.41]
    exact = stats.sign_flip_p(changes)
    drawn = stats.sign_flip_p([*changes, 1e-13])  # one more item passes the limit of exact enumeration
    assert exact == 392 / 2**14  # by enumeration
    assert drawn == pytest.approx(exact, abs=0.004)
    assert drawn == stats.sign_flip_p([*changes, 1e-13])
    assert stats.sign_flip_p([0.0, 0.0]) == 1.0


def test_score_interval_grows_with_disagreeing_seeds():
    items = [1.0] * 80 + [0.0] * 20
    alone = stats.score_interval([items])
    assert (alone.low, alone.high) == (stats.wilson(0.8, 100).low, stats.wilson(0.8, 100).high)
    worse = [1.0] * 60 + [0.0] * 40
    spread = stats.score_interval([items, worse, items])
    assert spread.high - spread.low > alone.high - alone.low
    graded = stats.score_interval([[0.2, 0.4, 0.6]])
    reach = stats.student_quantile(0.975, 2) * 0.2 / math.sqrt(3)
    assert (graded.low, graded.high) == (pytest.approx(max(0, 0.4 - reach)), pytest.approx(0.4 + reach))


def simulate(draw: random.Random, items: int, seeds: int, seed_sd: float) -> tuple[list, list]:
    """Two arms of the same method: item difficulties shared, each run with its own shift of skill."""
    skills = [draw.gauss(1.0, 2.0) for _ in range(items)]

    def run() -> list[float]:
        shift = draw.gauss(0.0, seed_sd)
        return [float(draw.random() < 1 / (1 + math.exp(-skill - shift))) for skill in skills]

    return [run() for _ in range(seeds)], [run() for _ in range(seeds)]


@pytest.mark.parametrize("seed_sd", [0.0, 0.2])
def test_equal_methods_are_rarely_called_different(seed_sd):
    """A/A: at most about 5% (bench/aa.py measures more settings); 400 repetitions have an sd of 1.1 points."""
    draw = random.Random(7)
    called = sum(stats.difference(*simulate(draw, 60, 3, seed_sd)).p < 0.05 for _ in range(400))
    assert called / 400 <= 0.075


def test_a_real_difference_is_called():
    draw = random.Random(3)
    called = 0
    for _ in range(100):
        baseline, other = simulate(draw, 200, 3, 0.05)
        better = [[1.0 if draw.random() < 0.5 else score for score in run] for run in other]
        called += stats.difference(baseline, better).p < 0.05
    assert called >= 95
