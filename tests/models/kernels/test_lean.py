"""Lean norms and gated layers: the same forward bit for bit, autograd's gradients, and less kept for the backward."""

import importlib

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaMLP, GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from luthier.models.kernels.lean import form_of, recompute_intermediates

CONFIG = LlamaConfig(
    vocab_size=31,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
IDS = torch.tensor([[3, 9, 1, 30, 4, 7], [2, 2, 5, 8, 0, 11]])


def tiny_llama(dtype, **more):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**CONFIG.to_dict(), **more}))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 1.0, 0.3)
    return model.to(dtype)


def loss_and_gradients(model):
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 0.0), (torch.bfloat16, 0.03)])
def test_the_forward_is_the_same_and_gradients_are_those_of_autograd(dtype, most):
    model = tiny_llama(dtype)
    expected, gradients = loss_and_gradients(model)
    with recompute_intermediates(model):
        actual, others = loss_and_gradients(model)
    assert torch.equal(actual, expected)
    for name, gradient in gradients.items():
        apart = torch.linalg.vector_norm(others[name] - gradient) / torch.linalg.vector_norm(gradient)
        assert apart <= most, name


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm])
def test_of_a_norm_by_numbers(kind):
    draw = torch.Generator().manual_seed(1)
    norm, x = kind(6, eps=0.1), torch.randn(2, 5, 6, generator=draw, requires_grad=True)
    norm.weight.data = torch.randn(6, generator=draw)
    grad_out = torch.randn(2, 5, 6, generator=draw)
    expected = torch.autograd.grad(norm(x), (x, norm.weight), grad_out)
    with recompute_intermediates(norm):
        assert type(norm) is form_of(kind)
        actual = torch.autograd.grad(norm(x), (x, norm.weight), grad_out)
    for left, right in zip(actual, expected, strict=True):
        assert torch.allclose(left, right, rtol=0, atol=1e-6)
    assert type(norm) is kind


def test_less_is_kept():
    def kept(model):
        sizes = {}

        def keep(tensor):
            sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            alive = model(input_ids=IDS, labels=IDS).loss
        assert alive.requires_grad
        return sum(sizes.values())

    model = tiny_llama(torch.bfloat16)
    plain = kept(model)
    with recompute_intermediates(model):
        lean = kept(model)
    positions, norms, layers = IDS.numel(), 5, 2
    least = norms * positions * 16 * 4 + layers * positions * 24 * 2  # a float32 copy of each input, silu of each gate
    assert plain - lean >= least


def test_a_frozen_norm_passes_its_gradient_on():
    model = tiny_llama(torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embed" in name or "gate" in name)
    _, expected = loss_and_gradients(model)
    with recompute_intermediates(model):
        _, actual = loss_and_gradients(model)
    assert actual.keys() == expected.keys() and len(expected) == 3
    assert all(torch.allclose(actual[name], expected[name], rtol=1e-4, atol=1e-7) for name in expected)


def test_second_derivatives():
    def second(model):
        loss = model(inputs_embeds=model.get_input_embeddings()(IDS), labels=IDS).loss
        weights = [model.model.layers[0].mlp.gate_proj.weight, model.model.norm.weight]
        grads = torch.autograd.grad(loss, weights, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), weights)

    model = tiny_llama(torch.float32)
    model.set_attn_implementation("eager")
    expected = second(model)
    with recompute_intermediates(model):
        actual = second(model)
    for left, right in zip(actual, expected, strict=True):
        assert torch.allclose(left, right, rtol=1e-3, atol=1e-5 * float(right.abs().max()))


def test_layers_that_compute_something_else_stay():
    assert form_of(GemmaRMSNorm) is None  # its weight is one less

    class OddRMSNorm(LlamaRMSNorm):
        def forward(self, hidden_states):
            return 2 * super().forward(hidden_states)

    assert form_of(OddRMSNorm) is None and form_of(nn.RMSNorm) is None and form_of(nn.LayerNorm) is None
    assert form_of(LlamaMLP) is not None


def test_another_activation_is_left_to_the_layer():
    model = tiny_llama(torch.float32, hidden_act="gelu")
    expected, gradients = loss_and_gradients(model)
    with recompute_intermediates(model):
        actual, others = loss_and_gradients(model)
    name = "model.layers.0.mlp.gate_proj.weight"
    assert torch.equal(actual, expected) and torch.allclose(others[name], gradients[name], rtol=1e-4, atol=1e-7)
    assert form_of(GemmaMLP) is not None


def test_nothing_random_is_drawn_to_look_at_a_class():
    class NewRMSNorm(LlamaRMSNorm):
        pass

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert form_of(NewRMSNorm) is not None
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("values", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "olmo2", "helium", "nemotron_h", "gpt_oss", "deepseek_v4", "qwen3"])
def test_a_norm_gives_its_own_bits_with_any_types_of_weights_and_values(family, weights, values):
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    kinds = [kind for name, kind in vars(module).items() if name.endswith("RMSNorm") and "ed" not in name]
    kind = next(kind for kind in kinds if "weight" in dict(kind(8).named_parameters()))
    norm = kind(64)
    torch.manual_seed(0)
    norm.weight.data = torch.randn(64).to(weights)
    x = torch.randn(9, 64).to(values)
    expected = norm(x)
    with recompute_intermediates(norm):
        actual = norm(x)
    assert actual.dtype == expected.dtype and torch.equal(actual, expected)


def test_a_class_whose_forward_raises_anything_has_no_lean_form():
    class TupleMLP(LlamaMLP):
        def forward(self, x):
            first, second = super().forward(x), None
            raise ValueError("not enough values to unpack", first, second)

    assert form_of(TupleMLP) is None
    assert form_of(importlib.import_module("transformers.models.gpt_oss.modeling_gpt_oss").GptOssMLP) is None


def test_the_first_look_at_a_type_may_happen_within_a_checkpointed_layer():
    class FreshRMSNorm(LlamaRMSNorm):
        pass

    norm, x = FreshRMSNorm(16).to(torch.bfloat16), torch.randn(3, 16, dtype=torch.bfloat16, requires_grad=True)
    with recompute_intermediates(norm):
        torch.utils.checkpoint.checkpoint(norm, x, use_reentrant=False).sum().backward()
    assert x.grad is not None
