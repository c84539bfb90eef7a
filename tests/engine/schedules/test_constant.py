"""constant: warm-up, then flat."""

import pytest

from luthier import parts


def test_values():
    flat = parts.build("schedule", "constant")
    assert [flat.factor(p) for p in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]
    warm = parts.build("schedule", {"kind": "constant", "warmup": 0.2})
    assert [warm.factor(p) for p in (0.1, 0.2, 0.9)] == pytest.approx([0.5, 1.0, 1.0])
