"""Attention over short rows in bfloat16: torch's own numbers, in a model too; torch's kernel where it does not fit."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.models.kernels import attention
from luthier.models.kernels import attention as kernel
from luthier.models.kernels.attention import NAME, short_rows, use_short_rows


def made_up(batch, heads, groups, length, width=8, dtype=torch.float64):
    draw = torch.Generator().manual_seed(length)
    shapes = [(batch, count, length, width) for count in (heads, groups, groups)]
    return [torch.randn(shape, generator=draw, dtype=dtype).requires_grad_() for shape in shapes]


def with_gradients(inputs, output):
    draw = torch.Generator().manual_seed(0)
    grad_out = torch.randn(output.shape, generator=draw, dtype=torch.float64).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, inputs, grad_out)]


def causal(length):
    return torch.full((length, length), torch.finfo(torch.float64).min, dtype=torch.float64).triu(1)[None, None, None]


@pytest.mark.parametrize("kept", [256, 0])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
def test_output_and_gradients_are_those_of_torch(heads, groups, kept, monkeypatch):
    monkeypatch.setattr(attention, "KEPT", kept)
    inputs = made_up(2, heads, groups, 7)
    actual = with_gradients(inputs, short_rows(*inputs, causal(7), 0.3))
    expected = with_gradients(inputs, scaled_dot_product_attention(*inputs, is_causal=True, scale=0.3, enable_gqa=True))
    for left, right in zip(actual, expected, strict=True):
        assert torch.allclose(left, right, rtol=0, atol=1e-12)


def test_without_a_mask_every_position_is_seen():
    inputs = made_up(1, 2, 1, 5)
    actual, expected = short_rows(*inputs, None, 0.5), scaled_dot_product_attention(*inputs, scale=0.5, enable_gqa=True)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_mask_of_each_record(kind):
    inputs = made_up(2, 4, 2, 6)
    visible = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    visible[1, :, :, 0] = False
    visible[1, :, 0, 0] = True
    mask = visible if kind == "bool" else torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -1e30)
    actual = with_gradients(inputs, short_rows(*inputs, attention._additive(inputs[0], mask, True), 0.3))
    expected = with_gradients(
        inputs, scaled_dot_product_attention(*inputs, attn_mask=visible, scale=0.3, enable_gqa=True)
    )
    for left, right in zip(actual, expected, strict=True):
        assert torch.allclose(left, right, rtol=0, atol=1e-12)


def test_a_position_that_sees_nothing_gives_numbers():
    inputs = made_up(1, 2, 2, 4, dtype=torch.bfloat16)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    for tensor in with_gradients(inputs, short_rows(*inputs, attention._additive(inputs[0], mask, True), 0.3)):
        assert torch.isfinite(tensor).all()


def tiny():
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


IDS = torch.tensor([[3, 9, 1, 30, 4, 7], [2, 2, 5, 8, 0, 0]])


def loss_and_gradients(model, mask=None):
    model.zero_grad()
    visible = torch.ones_like(IDS) if mask is None else mask
    labels = IDS.masked_fill((visible * visible.roll(1, 1)) == 0, -100)  # padding predicts nothing either
    loss = model(input_ids=IDS, labels=labels, attention_mask=mask).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("mask", [None, torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])])
def test_a_model_is_no_further_from_float32_than_with_the_kernel_of_torch(mask):
    wide = loss_and_gradients(tiny(), mask)
    kernel = loss_and_gradients(tiny().bfloat16(), mask)
    model = tiny().bfloat16()
    use_short_rows(model)
    assert model.config._attn_implementation == NAME
    actual = loss_and_gradients(model, mask)
    apart = [sum(float((a - b.float()).square().sum()) for a, b in zip(wide, g, strict=True)) for g in (kernel, actual)]
    assert 0 < apart[1] < 1.5 * apart[0]


def test_what_it_does_not_fit_goes_to_the_kernel_of_torch(monkeypatch):
    used = []
    own = attention.short_rows
    monkeypatch.setattr(attention, "short_rows", lambda *arguments: used.append(1) or own(*arguments))
    model = tiny()
    use_short_rows(model)
    assert model.config._attn_implementation == "sdpa"  # float32
    model.bfloat16()
    use_short_rows(model)
    model(input_ids=IDS)
    assert len(used) == 2
    assert torch.isfinite(model.float()(input_ids=IDS).logits).all() and len(used) == 2
    model.bfloat16()
    monkeypatch.setattr(attention, "LONGEST", 5)
    model(input_ids=IDS)
    assert len(used) == 2
    monkeypatch.setattr(attention, "LONGEST", 6)
    cache = model(input_ids=IDS[:, :-1], use_cache=True).past_key_values
    assert len(used) == 4
    model(input_ids=IDS[:, -1:], past_key_values=cache)
    assert len(used) == 4


def test_a_model_with_attention_of_its_own_choice_keeps_it():
    model = tiny().bfloat16()
    model.set_attn_implementation("eager")
    use_short_rows(model)
    assert model.config._attn_implementation == "eager"


def test_the_choice_is_not_saved(tmp_path):
    model = tiny().bfloat16()
    use_short_rows(model)
    assert model.config._attn_implementation == NAME
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    assert LlamaForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_what_comes_back_can_be_viewed_as_torchs_own():
    query, key, value = (torch.randn(2, 4, 6, 8, dtype=torch.bfloat16) for _ in range(3))
    output, _ = kernel.attention(torch.nn.Module(), query, key, value, None)
    assert output.shape == (2, 6, 4, 8) and output.view(2, 6, 32).is_contiguous()
