"""Retention counts what the base had right."""

import pytest

from luthier.evals.base import EvaluationError, Item
from luthier.evals.retention import retention


def items(rights):
    return [Item(str(i), "p", "r", "a", float(right), "stop", "exact", right) for i, right in enumerate(rights)]


def test_kept_and_net_change():
    found = retention(items([True, True, True, False]), items([True, False, False, True])[::-1])
    assert (found.kept, found.base_right, found.net_change, found.n) == (1 / 3, 3, -25.0, 4)
    assert found.reason is None


def test_a_base_that_knows_nothing():
    found = retention(items([False, False]), items([True, False]))
    assert (found.kept, found.base_right, found.net_change) == (None, 0, 50.0)
    assert "nothing to keep" in str(found.to_json()["reason"])


@pytest.mark.parametrize("after", [[True], [True, True, True]])
def test_different_items_are_refused(after):
    with pytest.raises(EvaluationError, match=r"record [12]"):
        retention(items([True, True]), items(after))


def test_no_items_are_refused():
    with pytest.raises(EvaluationError):
        retention([], [])
