"""linear: values at known points; every option is read."""

import pytest

from luthier import parts


def factor(progress, **options):
    return parts.build("schedule", {"kind": "linear", **options}).factor(progress)


def test_warm_up_is_linear_and_ends_at_one():
    assert factor(0.05, warmup=0.1) == pytest.approx(0.5)
    assert factor(0.1, warmup=0.1) == pytest.approx(1.0)


def test_middle_and_end():
    assert factor(0.5, warmup=0.0) == pytest.approx(0.5)
    assert factor(1.0, warmup=0.0) == pytest.approx(0.0, abs=1e-12)
    assert factor(1.0, warmup=0.0, floor=0.1) == pytest.approx(0.1)
    assert factor(1.0, warmup=1.0) == pytest.approx(0.0, abs=1e-12)


def test_shape():
    quarter = factor(0.25, warmup=0.0)
    assert quarter == pytest.approx({"cosine": 0.8535533906, "linear": 0.75}["linear"])
