"""Slices, sparse differences and routed experts against the authors' layers: outputs and gradients."""

import pytest
import torch
from torch import nn

from luthier import parts
from luthier.tuners import _experts, _slices, _sparse
from parity.golden import difference, golden, tensor

S2FT, MOE = golden("s2ft"), golden("loramoe")
LAYER, SM3, SCHEDULE = golden("spiel_layer"), golden("spiel_sm3"), golden("spiel_schedule")


def linear(weight, bias=None):
    weight = tensor(weight)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=torch.float64)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(tensor(bias), requires_grad=False)
    return layer


@pytest.mark.parametrize("case", S2FT, ids=lambda case: f"dim {case['dim']}")
def test_s2ft(case):
    index = torch.tensor(case["index"])
    layer = _slices.SliceLinear(linear(case["weight"], case["bias"]), index, case["dim"], index)
    with torch.no_grad():
        layer.slice += tensor(case["delta"])
    x = tensor(case["x"], requires_grad=True)
    y = layer(x)
    gradients = torch.autograd.grad(y, (x, layer.slice), tensor(case["upstream"]))
    assert difference(y, case["y"]) < 1e-14
    assert difference(gradients[0], case["gradient_x"]) < 1e-14
    assert difference(gradients[1], case["gradient_slice"]) < 1e-14


def test_spiel_layer():
    """Beside the gradients of the differences, that of the whole weight, which an open window sees."""
    layer = _sparse.SparseLinear(linear(LAYER["weight"], LAYER["bias"]), torch.tensor(LAYER["index"]), "update")
    with torch.no_grad():
        layer.delta += tensor(LAYER["delta"])
    layer.window = _sparse.Window()
    x = tensor(LAYER["x"], requires_grad=True)
    y = layer(x)
    gradients = torch.autograd.grad(y, (x, layer.delta), tensor(LAYER["upstream"]))
    assert difference(y, LAYER["y"]) < 1e-14
    assert difference(gradients[0], LAYER["gradient_x"]) < 1e-14
    assert difference(gradients[1], LAYER["gradient_delta"]) < 1e-14
    assert difference(layer.window.dense.view_as(layer.weight), LAYER["dense_gradient"]) < 1e-14


def test_spiel_sm3():
    """Theirs is float32."""
    layer = _sparse.SparseLinear(linear(torch.zeros(SM3["shape"]).tolist()), torch.tensor(SM3["index"]), "update")
    with torch.no_grad():
        layer.delta += tensor(SM3["start"])
    rule = _sparse.Rule("sm3", lr=SM3["lr"], eps=SM3["eps"], weight_decay=SM3["weight_decay"])
    optimizer = rule.make([layer.delta])
    for gradient, wanted in zip(SM3["gradients"], SM3["after_each_step"], strict=True):
        layer.delta.grad = tensor(gradient)
        optimizer.step()
        assert difference(layer.delta, wanted) < 1e-6
    state = optimizer.state[layer.delta]
    assert difference(state["row"], SM3["row"]) < 1e-6 and difference(state["column"], SM3["column"]) < 1e-6


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_spiel_schedule(decay):
    """When entries are replaced, and which share of them."""
    options = {"every": SCHEDULE["every"], "window": SCHEDULE["window"], "rate": SCHEDULE["rate"], "decay": decay}
    tuner = parts.build("tuner", {"kind": "spiel", **options})
    wanted = SCHEDULE[decay]
    assert [step for step, _ in wanted] == [step for step in range(1, 101) if step % tuner.every == tuner.window]
    shares = [tuner.share(step, step / SCHEDULE["updates"]) for step, _ in wanted]
    assert difference(shares, [share for _, share in wanted]) < 1e-14


def experts():
    """Their four experts in our layer: all A below one another, all B side by side."""
    count, r = len(MOE["down"]), len(MOE["down"][0])
    generator = torch.Generator().manual_seed(0)
    layer = _experts.ExpertLinear(linear(MOE["weight"]), count, r, MOE["alpha_over_r"], 0.0, generator)
    with torch.no_grad():
        layer.down.copy_(tensor(MOE["down"]).flatten(0, 1))
        layer.up.copy_(torch.cat(list(tensor(MOE["up"])), 1))
        layer.router.copy_(tensor(MOE["router"]))
    return layer


def test_loramoe_layer():
    layer = experts()
    x = tensor(MOE["x"], requires_grad=True)
    y = layer(x)
    assert difference(y, MOE["y"]) < 1e-14
    assert difference(torch.autograd.grad(y, x, tensor(MOE["upstream"]))[0], MOE["gradient_x"]) < 1e-14


def test_loramoe_balance_over_both_rows():
    """Theirs takes all rows of a micro-batch at once, and the first half of the experts more on rows of type 1."""
    layer = experts()
    usage = layer.shares(tensor(MOE["x"])).sum(1)
    expected = _experts.expectations(tensor(MOE["types"]), layer.experts, MOE["delta"])
    balance = _experts.imbalance((expected * usage).flatten())
    assert difference(balance, MOE["balance_over_both_rows"]) < 1e-14
    gradient = torch.autograd.grad(balance, layer.router)[0]
    assert difference(gradient, MOE["gradient_router_of_balance"]) < 1e-13
