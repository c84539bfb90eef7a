"""The head against plain full logits."""

import weakref

import pytest
import torch
from torch import nn

from luthier.errors import RecipeError
from luthier.models.kernels import head as heads
from luthier.models.kernels.gradients import accumulating_in_place
from luthier.models.kernels.head import Head, target_logprob


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setitem(heads.CHUNK_BYTES, "cpu", 7 * 13 * 8)  # seven positions of a vocabulary of 13
    monkeypatch.setattr(heads, "CACHED_BYTES", 4 * 13 * 8)  # four of them


def setup(bias=False):
    torch.manual_seed(0)
    output = nn.Linear(5, 13, bias=bias).double()
    hidden = torch.randn(17, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 13, (17,))
    return output, hidden, targets


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


def test_chunks_cover_every_position_once():
    output, hidden, _ = setup()
    pieces = Head(output).chunks(hidden)
    assert len(pieces) == 3
    assert [i for piece in pieces for i in range(piece.start, piece.stop)] == list(range(17))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("hooked", [False, True])
def test_sum_equals_full_logits(bias, hooked):
    """A plain linear layer's gradients are added up by hand; what a hook changes is left to autograd."""
    output, hidden, targets = setup(bias)
    if hooked:
        output.register_forward_hook(lambda _module, _inputs, logits: 2.0 * logits)
    assert Head(output).is_plain_linear != hooked
    full = -(torch.log_softmax(output(hidden), -1).gather(-1, targets[:, None])[:, 0] * torch.arange(17)).sum()
    chunked = Head(output).sum(hidden, lambda s, z: -target_logprob(z, targets[s]) * torch.arange(17)[s])
    assert torch.allclose(full, chunked, rtol=1e-12)
    expected = gradients(3.0 * full, hidden, *output.parameters())
    actual = gradients(3.0 * chunked, hidden, *output.parameters())
    for left, right in zip(expected, actual, strict=True):
        assert torch.allclose(left, right, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("positions", [5, 17, 40])
def test_gradients_of_several_backwards_add_up(bias, positions):
    """Few positions keep the gradients of their logits, many the weight's; both are added to an existing gradient."""
    torch.manual_seed(0)
    output = nn.Linear(16, 13, bias=bias).double()
    hidden = torch.randn(positions, 16, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 13, (positions,))
    by_way = {}
    for way in ("full", "chunked"):
        output.zero_grad()
        for factor in (3.0, 0.5):
            if way == "full":
                loss = -target_logprob(output(hidden), targets).sum()
            else:
                loss = Head(output).sum(hidden, lambda s, z: -target_logprob(z, targets[s]))
            before = output.weight.grad
            with accumulating_in_place():
                (factor * loss).backward()
            if way == "chunked" and before is not None:
                assert output.weight.grad is before
        by_way[way] = [p.grad.clone() for p in output.parameters()]
    for left, right in zip(by_way["full"], by_way["chunked"], strict=True):
        assert torch.allclose(left, right, rtol=1e-10, atol=1e-13) and left.abs().sum() > 0


def test_few_positions_hold_no_gradient_of_the_weights_size():
    output, kept = nn.Linear(64, 1000, bias=False), []
    hidden = torch.randn(8, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        Head(output).sum(hidden, lambda s, z: z.square().sum(-1))
    assert max(kept) <= 8 * 1000


def test_sum_of_a_bfloat16_head_adds_up_in_float32():
    torch.manual_seed(0)
    output, targets = nn.Linear(5, 13, bias=False).bfloat16(), torch.randint(0, 13, (17,))
    hidden = torch.randn(17, 5).bfloat16().requires_grad_()
    by_form = {}
    for head in (Head(output), Head(nn.Sequential(output))):
        head.output.weight = output.weight  # a sequence is no plain linear layer
        loss = head.sum(hidden, lambda s, z: -target_logprob(z, targets[s]))
        by_form[head.is_plain_linear] = gradients(loss, hidden, output.weight)
    for left, right in zip(by_form[True], by_form[False], strict=True):
        assert left.dtype == torch.bfloat16 and torch.equal(left, right)


def test_the_size_of_a_chunk_is_that_of_the_device_and_of_a_device_that_is_not_named_the_processors(monkeypatch):
    output, hidden = nn.Linear(5, 13, device="meta"), torch.empty(17, 5, device="meta")
    assert len(Head(output).chunks(hidden)) == 2  # fourteen positions of float32
    monkeypatch.setitem(heads.CHUNK_BYTES, "meta", 2**20)
    assert len(Head(output).chunks(hidden)) == 1


def test_map_equals_full_logits_and_keeps_the_graph():
    output, hidden, targets = setup()
    full = torch.log_softmax(output(hidden), -1).gather(-1, targets[:, None])[:, 0]
    mapped = Head(output).map(hidden, lambda s, z: target_logprob(z, targets[s]))
    assert torch.allclose(full, mapped, rtol=1e-12)
    expected = gradients(full.exp().prod(), hidden, output.weight)
    for left, right in zip(expected, gradients(mapped.exp().prod(), hidden, output.weight), strict=True):
        assert torch.allclose(left, right, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("positions", [0, 5, 17, 40])
def test_gradients_of_a_trained_heads_map_are_added_to_what_is_there(bias, positions):
    """Few positions keep the gradients of their logits, many the weight's gradient."""
    torch.manual_seed(0)
    output = nn.Linear(16, 13, bias=bias).double()
    hidden = torch.randn(positions, 16, dtype=torch.float64, requires_grad=True)
    targets, by_way = torch.randint(0, 13, (positions,)), {}
    for way in ("full", "chunked"):
        output.zero_grad()
        hidden.grad, asked = None, []

        def value(piece, logits, asked=asked):
            asked.append(piece)
            return target_logprob(logits, targets[piece])

        for factor in (3.0, 0.5):
            values = target_logprob(output(hidden), targets) if way == "full" else Head(output).map(hidden, value)
            before = output.weight.grad
            with accumulating_in_place():
                (factor * values.exp().square().sum()).backward()
            if way == "chunked" and before is not None:
                assert output.weight.grad is before
        by_way[way] = [values.detach(), hidden.grad, *(p.grad.clone() for p in output.parameters())]
    for left, right in zip(by_way["full"], by_way["chunked"], strict=True):
        assert torch.allclose(left, right, rtol=1e-10, atol=1e-13) and (not positions or left.abs().sum() > 0)
    assert sorted(i for piece in asked for i in range(piece.start, piece.stop)) == sorted([*range(positions)] * 4)


@pytest.mark.parametrize("way", ["sum", "map"])
def test_a_second_derivative_is_refused(way):
    output, hidden, targets = setup()
    actual = getattr(Head(output), way)(hidden, lambda s, z: -target_logprob(z, targets[s]))
    (grad,) = torch.autograd.grad(actual.square().sum(), [hidden], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("way", ["sum", "map"])
def test_without_a_gradient_the_function_sees_blocks_too(way, trained):
    """Nobody asks for one: gradients are off, or neither hidden states nor head are trained."""
    output, hidden, _ = setup()
    output.requires_grad_(trained)
    rows = []

    def value(piece, logits):
        rows.append(len(logits))
        return logits[:, 3]

    with torch.set_grad_enabled(not trained):
        actual = getattr(Head(output), way)(hidden.detach(), value)
    expected = output(hidden)[:, 3]
    assert torch.allclose(actual, expected.sum() if way == "sum" else expected, rtol=1e-12) and not actual.requires_grad
    assert max(rows) == 4 and sum(rows) == 17


def test_one_chunk_is_alive_at_a_time(monkeypatch):
    """The logits of one chunk, or their gradients, are gone before the next one's are made."""
    output, hidden, targets = setup()
    alive, product = [], Head.product

    def counted(head, part):
        assert not [ref for ref in alive if ref() is not None]
        logits = product(head, part)
        alive.append(weakref.ref(logits))
        return logits

    monkeypatch.setattr(Head, "product", counted)
    Head(output).sum(hidden, lambda s, z: -target_logprob(z, targets[s])).backward()
    output.requires_grad_(False)
    Head(output).map(hidden, lambda s, z: -target_logprob(z, targets[s])).sum().backward()
    Head(output).map(hidden.detach(), lambda s, z: z[:, 3])
    assert len(alive) == 9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_blocks_are_counted_in_the_accumulation_type(dtype):
    output, hidden, _ = setup()
    rows = []
    Head(output.to(dtype)).sum(hidden.to(dtype), lambda s, z: rows.append(len(z)) or z[:, 3])
    assert max(rows) == (4 if dtype == torch.float64 else 8)


@pytest.mark.parametrize("hooked", [False, True])
def test_map_of_a_frozen_head_asks_each_position_once(hooked):
    """Values of their own position alone: what follows can only scale the gradient, which is known at once."""
    output, hidden, targets = setup()
    output.requires_grad_(False)
    if hooked:
        output.register_forward_hook(lambda _module, _inputs, logits: 2.0 * logits)
    asked = []

    def value(piece, logits):
        asked.append(piece)
        return target_logprob(logits, targets[piece])

    full = torch.log_softmax(output(hidden), -1).gather(-1, targets[:, None])[:, 0]
    mapped = Head(output).map(hidden, value)
    assert torch.allclose(full, mapped, rtol=1e-12)
    (expected,), (actual,) = gradients(full.exp().prod(), hidden), gradients(mapped.exp().prod(), hidden)
    assert torch.allclose(expected, actual, rtol=1e-10, atol=1e-15)
    assert [i for piece in asked for i in range(piece.start, piece.stop)] == list(range(17))


def test_values_may_be_views_of_the_logits():
    """The logits are overwritten by their gradient, block by block; what the function returned must outlive that."""
    output, hidden, _ = setup()
    full = output(hidden)[:, 3]
    actual = Head(output).sum(hidden, lambda s, z: z[:, 3])
    assert torch.allclose(actual, full.sum(), rtol=1e-12)
    expected = gradients(full.sum(), hidden, output.weight)
    assert all(torch.allclose(a, b) for a, b in zip(expected, gradients(actual, hidden, output.weight), strict=True))


def test_frozen_head_gives_only_the_hidden_gradient():
    output, hidden, targets = setup()
    output.requires_grad_(False)
    Head(output).sum(hidden, lambda s, z: -target_logprob(z, targets[s])).backward()
    assert output.weight.grad is None and hidden.grad is not None


def test_nothing_to_predict_gives_zero_with_a_gradient():
    output, hidden, targets = setup()
    loss = Head(output).sum(hidden[:0], lambda s, z: -target_logprob(z, targets[s]))
    loss.backward()
    assert float(loss.detach()) == 0 and hidden.grad is not None and not hidden.grad.any()


def test_scale_and_soft_cap():
    output, hidden, _ = setup()
    logits = Head(output, scale=0.5, softcap=2.0).logits(hidden)
    assert torch.allclose(logits, 2.0 * torch.tanh(0.5 * output(hidden) / 2.0))


def test_logits_are_at_least_float32():
    output = nn.Linear(5, 13, bias=False).bfloat16()
    assert Head(output).logits(torch.ones(2, 5, dtype=torch.bfloat16)).dtype == torch.float32


def test_target_logprob_gradient():
    torch.manual_seed(0)
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 5, 2, 2])
    assert torch.autograd.gradcheck(lambda z: target_logprob(z, targets), (logits,))


@pytest.mark.peers
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype, allowed", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_sum_equals_torchs_linear_cross_entropy(bias, dtype, allowed):
    theirs = getattr(nn.functional, "linear_cross_entropy", None)
    if theirs is None:
        pytest.skip("this torch has no linear_cross_entropy")
    output, hidden, targets = setup(bias)
    output, hidden = output.to(dtype), hidden.detach().to(dtype).requires_grad_()
    ours = Head(output).sum(hidden, lambda s, z: -target_logprob(z, targets[s])) / len(targets)
    parameters = [hidden, *output.parameters()]
    actual = [ours, *gradients(ours, *parameters)]
    for chunks in (None, nn.LinearCrossEntropyOptions(batch_chunk_size=4)):
        loss = theirs(hidden, output.weight, targets, linear_bias=output.bias, options=chunks)
        expected = [loss, *gradients(loss, *parameters)]
        errors = [float(((a - b).norm() / b.norm()).detach()) for a, b in zip(actual, expected, strict=True)]
        how = "whole" if chunks is None else "in chunks"
        print(f"linear_cross_entropy, {dtype}, {how}: loss {errors[0]:.1e}, gradient {max(errors[1:]):.1e}")
        assert max(errors) <= allowed


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("way", ["sum", "map"])
def test_a_function_that_gives_other_shapes_is_refused(way, hooked):
    output, hidden, _ = setup()
    if hooked:
        output.register_forward_hook(lambda _module, _inputs, logits: 2.0 * logits)
    for gradient in (True, False):
        with torch.set_grad_enabled(gradient):
            with pytest.raises(RecipeError, match=r"returned \(\d, 2\); one value per position"):
                getattr(Head(output), way)(hidden, lambda s, z: z[:, :2])
            with pytest.raises(RecipeError, match=r"returned \(\); one value per position"):
                getattr(Head(output), way)(hidden, lambda s, z: z.sum())


@pytest.mark.parametrize("trained", [True, False])
def test_map_refuses_what_one_gradient_per_position_cannot_say(trained):
    output, hidden, targets = setup()
    output.requires_grad_(trained)
    factor = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RecipeError, match="reads a trained tensor"):
        Head(output).map(hidden, lambda s, z: target_logprob(z, targets[s]) * (factor + 1.0)).sum().backward()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("positions", [0, 1, 2, 70])
def test_a_large_vocabulary_is_multiplied_in_pieces_without_gradient(positions, bias):
    draw = torch.Generator().manual_seed(0)
    output = nn.Linear(24, 9000, bias=bias)
    hidden = torch.randn(positions, 24, generator=draw)
    head, calls = Head(output), []
    expected = output(hidden)
    output.forward = lambda hidden: calls.append(1) or expected  # the module's own product
    assert torch.allclose(head.logits(hidden), expected) and calls == [1]
    with torch.no_grad():
        actual = head.logits(hidden)
    assert actual.shape == expected.shape and torch.allclose(actual, expected, atol=1e-5)
    assert len(calls) == (2 if positions < 2 or bias else 1)
