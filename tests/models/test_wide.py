import pytest
import torch

from luthier.models.wide import wide_dtype, widened


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_sums_are_kept_in_float32_or_wider(dtype, wide):
    numbers = torch.tensor([1.0, 1 / 3], dtype=dtype)
    assert wide_dtype(dtype) == widened(numbers).dtype == wide
    assert torch.equal(widened(numbers).to(dtype), numbers)


def test_integers_stay_as_they_are():
    labels = torch.tensor([1, 2**40])
    assert widened(labels) is labels
