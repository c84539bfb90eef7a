"""Gradients added within products are those that autograd adds, and only where the backward is the engine's own."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from luthier import parts
from luthier.engine.master_weights import MasterWeights
from luthier.models.kernels import gradients
from luthier.models.kernels import head as heads
from luthier.models.kernels.gradients import GradientSums, accumulating_in_place, added_in_products
from luthier.models.kernels.head import Head, target_logprob


@pytest.fixture(autouse=True)
def every_weight(monkeypatch):
    monkeypatch.setattr(gradients, "SMALLEST", 1)


class Net(nn.Module):
    def __init__(self, padding=None):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 4, padding_idx=padding, dtype=torch.float64)
        self.first = nn.Linear(4, 5, dtype=torch.float64)
        self.second = nn.Linear(5, 3, bias=False, dtype=torch.float64)

    def forward(self, ids):
        return self.second(torch.tanh(self.first(self.embedding(ids)))).square().sum()


BATCHES = [torch.tensor([[1, 2, 2], [0, 6, 3]]), torch.tensor([[2, 0, 5]]), torch.tensor([[4, 4], [2, 1]])]


def gathered(module, run):
    for ids in BATCHES:
        run(module(ids) if isinstance(module, Net) else module(input_ids=ids, labels=ids).loss)
    return {name: p.grad for name, p in module.named_parameters()}


def backward(loss):
    with accumulating_in_place():
        loss.backward()


@pytest.mark.parametrize("padding", [None, 0])
def test_the_sum_is_that_of_autograd(padding):
    expected = gathered(Net(padding), lambda loss: loss.backward())
    module = Net(padding)
    with added_in_products(module):
        actual = gathered(module, backward)
    for name, gradient in expected.items():
        assert torch.allclose(actual[name], gradient, rtol=0, atol=1e-12), name
        assert gradient.abs().sum() > 0


def test_they_are_added_where_they_are_kept():
    module = Net()
    with added_in_products(module):
        backward(module(BATCHES[0]))
        kept = {name: p.grad for name, p in module.named_parameters() if p.dim() == 2}
        before = {name: gradient.clone() for name, gradient in kept.items()}
        backward(module(BATCHES[1]))
    for name, p in module.named_parameters():
        if p.dim() == 2:
            assert p.grad is kept[name] and not torch.equal(p.grad, before[name])


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_with_its_head_tied_or_not(tied):
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).double()
    expected = {name: g.clone() for name, g in gathered(model, lambda loss: loss.backward()).items()}
    model.zero_grad()
    with added_in_products(model):
        actual = gathered(model, backward)
    for name, gradient in expected.items():
        assert torch.allclose(actual[name], gradient, rtol=0, atol=1e-6 * float(gradient.abs().max())), name


def test_another_ones_backward_is_left_alone():
    module = Net()
    with added_in_products(module):
        backward(module(BATCHES[0]))
        before = module.second.weight.grad.clone()
        (actual,) = torch.autograd.grad(module(BATCHES[1]), [module.second.weight])
        assert torch.equal(module.second.weight.grad, before)
    module.zero_grad()
    module(BATCHES[1]).backward()
    assert torch.allclose(actual, module.second.weight.grad)


def test_a_weight_that_is_watched_gets_its_gradient_from_autograd():
    module, collected = Net(), []
    module.first.weight.register_post_accumulate_grad_hook(lambda p: collected.append(p.grad.clone()))
    with added_in_products(module):
        gathered(module, backward)
    assert len(collected) == len(BATCHES)


def test_a_narrow_weight_that_somebody_else_watches_too_gets_its_gradient_from_autograd():
    net, collected = nn.ModuleList([nn.Embedding(7, 4), nn.Linear(4, 5, bias=False)]).bfloat16(), []
    masters = MasterWeights(net.named_parameters(), parts.build("optimizer", "adamw"))
    net[1].weight.register_post_accumulate_grad_hook(lambda p: collected.append(p.grad.clone()))
    masters.accumulate(several=True)
    with added_in_products(net):
        for ids in BATCHES:
            with accumulating_in_place(masters.sums):
                net[1](net[0](ids)).square().sum().backward()
    assert len(collected) == len(BATCHES)


def test_second_derivatives():
    module = Net()
    ids = BATCHES[0]
    with added_in_products(module):
        (grad,) = torch.autograd.grad(module(ids), [module.first.weight], create_graph=True)
        (actual,) = torch.autograd.grad(grad.square().sum(), [module.second.weight])
    (grad,) = torch.autograd.grad(module(ids), [module.first.weight], create_graph=True)
    (expected,) = torch.autograd.grad(grad.square().sum(), [module.second.weight])
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)


def test_layers_are_what_they_were_afterwards():
    module = Net()
    module.second.weight.requires_grad_(False)
    with pytest.raises(KeyError), added_in_products(module):
        assert type(module.first) is not nn.Linear and type(module.embedding) is not nn.Embedding
        assert type(module.second) is nn.Linear
        raise KeyError
    assert type(module.first) is nn.Linear and type(module.embedding) is nn.Embedding


def test_small_layers_stay(monkeypatch):
    monkeypatch.setattr(gradients, "SMALLEST", 21)
    module = Net()
    with added_in_products(module):
        assert type(module.first) is nn.Linear and type(module.embedding) is not nn.Embedding


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("first", [0, 5, 40])
def test_the_first_gradient_of_a_narrow_weight_overwrites_its_sum_and_the_others_add(first, tied, monkeypatch):
    """Few positions keep the gradients of their logits, many the weight's; the first may need no gradient."""
    monkeypatch.setitem(heads.CHUNK_BYTES, "cpu", 7 * 13 * 4)  # seven positions of a vocabulary of 13
    start = GradientSums.start
    monkeypatch.setattr(GradientSums, "start", lambda self, weight: start(self, weight).fill_(float("nan")))
    torch.manual_seed(0)
    table, output = nn.Embedding(13, 16).bfloat16(), nn.Linear(16, 13).bfloat16()
    if tied:
        output.weight = table.weight
    weights = list(dict.fromkeys([table.weight, output.weight, output.bias]))
    sums, expected = GradientSums(dict.fromkeys(weights, torch.float32)), dict.fromkeys(weights, 0.0)
    for positions in (first, 5, 40):
        ids, targets = torch.arange(positions) % 13, (torch.arange(positions) * 5) % 13
        plain = -target_logprob(output(table(ids)).float(), targets).sum() / 3
        for weight, gradient in zip(weights, torch.autograd.grad(plain, weights), strict=True):
            expected[weight] = expected[weight] + gradient.float()
        with added_in_products(nn.ModuleList([table])), accumulating_in_place(sums):
            hidden = table(ids)
            loss = Head(output).sum(hidden, lambda s, z, targets=targets: -target_logprob(z, targets[s])) / 3
            loss.backward()
    for weight in weights:
        actual = sums.get(weight)
        assert actual.dtype == torch.float32 and weight.grad is None
        assert torch.allclose(actual, expected[weight], rtol=0, atol=0.02 * float(expected[weight].abs().max()))


def test_the_first_gradient_in_a_sum_of_another_type_is_not_rounded_to_the_weights_type():
    weight = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    sums, gradient = GradientSums({weight: torch.float32}), torch.tensor([1.0, 1.5, 3.0], dtype=torch.bfloat16)
    with accumulating_in_place(sums):
        assert gradients.add(weight, gradient.clone(), 1 / 3) is None
    assert torch.equal(sums.get(weight), gradient.float() * (1 / 3))


def test_a_product_may_be_changed_in_place():
    """Some models do so with what their layers return, and autograd refuses it for views."""
    torch.manual_seed(0)
    x, layer = torch.randn(2, 3, 4, requires_grad=True), nn.Linear(4, 5)
    product = gradients._Product.apply(x, layer.weight, layer.bias)
    product.mul_(2)
    product.sum().backward()
    assert torch.equal(x.grad, 2 * layer.weight.detach().sum(0).expand_as(x)) and not product._is_view()
