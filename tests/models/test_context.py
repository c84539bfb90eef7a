"""A forward's values are there when it is computed again, and dropout can be repeated."""

import pytest
import torch

from luthier.conformance.tiny import tiny_model, tiny_rows
from luthier.data.batches import collate
from luthier.models.context import checkpoint_layers, context_value, forward_context, same_draws
from luthier.models.policy import TokenPolicy


def test_values_nest_and_end():
    assert context_value("factor") is None
    with forward_context(factor=1, other=2):
        with forward_context(factor=3):
            assert (context_value("factor"), context_value("other")) == (3, 2)
        assert context_value("factor") == 1
        with pytest.raises(ZeroDivisionError), forward_context(factor=1 / 0):
            pass
    assert context_value("factor") is None


def gradients(prepare):
    """Of two forwards under two factors and one backward; a linear within each layer reads the factor."""
    policy = TokenPolicy(tiny_model().train())
    prepare(policy.module)
    for layer in policy.layers:
        layer.mlp.up_proj.register_forward_hook(
            lambda m, inputs, output: torch.sin(output * (context_value("factor") or 9))
        )
    batch = collate(tiny_rows(2))
    total = 0
    for factor in (1, 3):
        with forward_context(factor=factor):
            total = total + policy.hidden(batch).square().sum()
    total.backward()
    return {name: p.grad for name, p in policy.module.named_parameters() if p.grad is not None}


def test_checkpointing_recomputes_each_forward_in_its_own_context():
    plain, again = gradients(lambda module: None), gradients(checkpoint_layers)
    assert all(torch.allclose(plain[name], again[name], rtol=1e-9, atol=1e-12) for name in plain)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_checkpointing_without_it_is_wrong():
    plain = gradients(lambda module: None)
    blind = gradients(lambda module: module.gradient_checkpointing_enable({"use_reentrant": False}))
    assert not all(torch.allclose(plain[name], blind[name], rtol=1e-3) for name in plain)


def test_same_draws_repeat_and_leave_others_alone():
    drop = torch.nn.Dropout(0.5)
    ones = torch.ones(100)
    torch.manual_seed(3)
    wanted = drop(ones)
    torch.manual_seed(3)
    draws = []
    for key in ("a", "a", "b"):
        with same_draws(key, torch.device("cpu")):
            draws.append(drop(ones))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(drop(ones), wanted)
