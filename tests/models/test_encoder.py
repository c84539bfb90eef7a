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
    outputs = policy.outputs(batch, ("image", "text", "bias"))
    assert outputs["image"].shape == outputs["text"].shape == (5, 8) and outputs["image"].dtype == torch.float64
    assert torch.equal(outputs["text"][0], outputs["text"][4]) and not torch.equal(
        outputs["image"][0], outputs["image"][4]
    )
    assert outputs["bias"].tolist() == [-1.0] * 5 and outputs["bias"].requires_grad


def test_a_missing_output_is_named(policy, batch):
    with pytest.raises(ModelError, match="no output `heatmap`"):
        policy.outputs(batch, ("heatmap",))
