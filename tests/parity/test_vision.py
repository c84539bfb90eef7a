"""siglip against open_clip: the loss and all its gradients."""

import pytest
import torch

from luthier.objectives.base import Update
from luthier.objectives.contrastive.siglip import SigLIP
from parity.golden import difference, golden, tensor


@pytest.mark.parametrize("case", golden("siglip"), ids=lambda case: f"{len(case['image'])} pairs")
def test_siglip(case):
    leaves = {name: tensor(case[name], requires_grad=True) for name in ("image", "text", "log_scale", "bias")}
    count = len(case["image"])
    features = {name: torch.nn.functional.normalize(leaves[name], dim=-1) for name in ("image", "text")}
    features |= {"scale": leaves["log_scale"].expand(count), "bias": leaves["bias"].expand(count)}
    (term,) = SigLIP().coupled_loss(features, {}, Update(1, 0))
    loss = term.total / count
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    assert difference(loss, case["loss"]) < 1e-13
    for name, gradient in gradients.items():
        assert difference(gradient, case[f"gradient_{name}"]) < 1e-13
