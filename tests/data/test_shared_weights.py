import numpy
import pytest

from luthier.data.shared_weights import with_shared_weights
from luthier.types import Row, Stream


def row(weights, dtype=numpy.float32):
    values = numpy.array(weights, dtype=dtype)
    return Row("a", numpy.arange(len(weights), dtype=numpy.int32), {"weights": Stream(values, "token")})


@pytest.mark.parametrize("weights", [[0, 0, 1, 1], [1, 1], [0, 0], [], [0, 1, 0, 1], [0, 0.5, 0.5], [0, 1, 2]])
def test_weights_stay_what_they_are(weights):
    assert with_shared_weights(row(weights)).streams["weights"].values.tolist() == weights


def test_a_prompt_and_an_answer_share_memory_that_nobody_can_change():
    first, second = (with_shared_weights(row([0, 0, 1])).streams["weights"].values for _ in range(2))
    assert numpy.shares_memory(first, second)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1
    assert not numpy.shares_memory(first, with_shared_weights(row([0, 0, 1], numpy.float64)).streams["weights"].values)
