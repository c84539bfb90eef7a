"""Master weights: fp32 beside bf16, gradients summed in fp32, steps as torch's own optimiser takes them."""

import torch
from torch import nn

from luthier import parts
from luthier.engine import precision
from luthier.engine.precision import Masters

ADAMW = parts.build("optimizer", {"kind": "adamw", "lr": 0.01, "weight_decay": 0.1})


def model(dtype):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)


def batch(seed, dtype):
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_in_float32_equals_torch_adamw(monkeypatch):
    monkeypatch.setattr(precision, "BUCKET_BYTES", 40)
    ours, theirs = model(torch.float32), model(torch.float32)
    masters = Masters(ours.named_parameters(), ADAMW)
    assert len(masters.buckets) > 1
    optimiser = ADAMW.make(list(theirs.parameters()))
    for step in range(3):
        masters.accumulate(several=False)
        ours(batch(step, torch.float32)).square().sum().backward()
        masters.step([1.0], 1.0)
        optimiser.zero_grad()
        theirs(batch(step, torch.float32)).square().sum().backward()
        optimiser.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_bfloat16_moves_less_than_its_own_resolution_through_the_masters():
    net = model(torch.bfloat16)
    masters = Masters(net.named_parameters(), parts.build("optimizer", {"kind": "adamw", "lr": 1e-5}))
    start = masters.master["0.weight"].detach().clone()
    for step in range(4):
        masters.accumulate(several=False)
        net(batch(step, torch.bfloat16)).square().sum().backward()
        masters.step([1.0], 1.0)
    moved = (masters.master["0.weight"].detach() - start).abs()
    assert masters.master["0.weight"].dtype == torch.float32
    assert 0 < float(moved.max()) < 1e-4
    assert torch.equal(net[0].weight, masters.master["0.weight"].bfloat16())


def test_several_bfloat16_gradients_are_summed_in_float32():
    net = model(torch.bfloat16)
    masters = Masters(net.named_parameters(), ADAMW)
    masters.accumulate(several=True)
    single = []
    for step in range(3):
        copy = model(torch.bfloat16)
        copy(batch(step, torch.bfloat16)).square().sum().backward()
        single.append(copy[0].weight.grad.float())
        net(batch(step, torch.bfloat16)).square().sum().backward()
        assert net[0].weight.grad is None
    assert torch.equal(masters.gradient("0.weight"), single[0] + single[1] + single[2])


def test_state_goes_round(tmp_path):
    one, other = (Masters(model(torch.bfloat16).named_parameters(), ADAMW) for _ in range(2))
    one.accumulate(several=False)
    for parameter in one.compute.values():
        parameter.grad = torch.ones_like(parameter)
    one.step([1.0], 1.0)
    other.load(one.state())
    for masters in (one, other):
        for parameter in masters.compute.values():
            parameter.grad = torch.full_like(parameter, 0.5)
        masters.step([1.0], 0.5)
    assert all(torch.equal(one.compute[name], other.compute[name]) for name in one.compute)


def test_norm_of_nothing_is_zero():
    masters = Masters(model(torch.float32).named_parameters(), ADAMW)
    assert masters.norms() == [0.0]
