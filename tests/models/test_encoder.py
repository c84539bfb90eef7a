"""EncoderPolicy: outputs by name, parameters once per record, a missing output in words."""

import pytest
import torch

from luthier.conformance.tiny import TINY_MODELS
from luthier.data.batches import collate
from luthier.errors import ModelError


@pytest.fixture
def policy():
    return TINY_MODELS["contrastive"].policy(TINY_MODELS["contrastive"].module(torch.float64, 0))


@pytest.fixture
def batch():
    return collate(TINY_MODELS["contrastive"].rows(5, 0))


def test_outputs_by_name(policy, batch):
    found = policy.outputs(batch, ("image", "text", "bias"))
    assert found["image"].shape == found["text"].shape == (5, 8) and found["image"].dtype == torch.float64
    assert torch.equal(found["text"][0], found["text"][4]) and not torch.equal(found["image"][0], found["image"][4])
    assert found["bias"].tolist() == [-1.0] * 5 and found["bias"].requires_grad


def test_a_missing_output_is_named(policy, batch):
    with pytest.raises(ModelError, match="no output `heatmap`"):
        policy.outputs(batch, ("heatmap",))
