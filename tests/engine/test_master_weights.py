"""Master weights: fp32 beside bf16, gradients summed in fp32, steps as torch's own optimiser takes them."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from luthier import parts
from luthier.engine import master_weights
from luthier.engine.master_weights import MasterWeights, Rounding
from luthier.models.kernels.gradients import GradientSums

ADAMW = parts.build("optimizer", {"kind": "adamw", "lr": 0.01, "weight_decay": 0.1})


def model(dtype):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)


def batch(seed, dtype):
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_in_float32_equals_torch_adamw(monkeypatch):
    monkeypatch.setattr(master_weights, "BUCKET_BYTES", 40)
    ours, theirs = model(torch.float32), model(torch.float32)
    masters = MasterWeights(ours.named_parameters(), ADAMW)
    assert len(masters.buckets) > 1
    optimiser = ADAMW.make(list(theirs.parameters()))
    for step in range(3):
        masters.accumulate(several=False)
        ours(batch(step, torch.float32)).square().sum().backward()
        masters.step([1.0], 1.0)
        optimiser.zero_grad()
        theirs(batch(step, torch.float32)).square().sum().backward()
        optimiser.step()
    for own, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(own, reference)


def test_bfloat16_moves_less_than_its_own_resolution_through_the_masters():
    net = model(torch.bfloat16)
    masters = MasterWeights(net.named_parameters(), parts.build("optimizer", {"kind": "adamw", "lr": 1e-5}))
    start = masters.master["0.weight"].detach().clone()
    for step in range(4):
        masters.accumulate(several=False)
        net(batch(step, torch.bfloat16)).square().sum().backward()
        masters.step([1.0], 1.0)
    moved = (masters.master["0.weight"].detach() - start).abs()
    assert masters.master["0.weight"].dtype == torch.float32
    assert 0 < float(moved.max()) < 1e-4
    apart = (net[0].weight.float() - masters.master["0.weight"].detach()).abs()
    assert bool((apart <= start.abs() * 2**-7).all())  # one of bfloat16's two neighbours


def test_a_step_far_below_bfloat16s_resolution_moves_the_model_on_average_as_in_float32():
    net = nn.Linear(256, 256, bias=False).bfloat16()
    nn.init.constant_(net.weight, 0.1)
    masters = MasterWeights(net.named_parameters(), parts.build("optimizer", {"kind": "adamw", "lr": 1e-5}))
    start = net.weight.detach().float().mean()
    masters.accumulate(several=False)
    net.weight.grad = torch.ones_like(net.weight)
    masters.step([1.0], 1.0)
    resolution, chance = 2**-11, 1e-5 * 2**11  # of bfloat16 at 0.1
    error = resolution * (chance * (1 - chance) / net.weight.numel()) ** 0.5
    assert abs(float(net.weight.detach().float().mean() - start) + 1e-5) < 4 * error < 2e-6
    assert set(net.weight.detach().float().sub(start).unique().tolist()) == {0.0, -resolution}


@pytest.mark.parametrize("sign", [1, -1])
def test_rounding_has_the_value_as_its_mean(sign, monkeypatch):
    monkeypatch.setattr(master_weights, "DRAWN", 1000)
    wide = torch.full((200, 100), sign * (1 + 0.3 * 2**-7))
    rounded = torch.empty(200, 100, dtype=torch.bfloat16)
    Rounding(3).round(wide, rounded)
    assert set(rounded.float().unique().tolist()) == {sign * 1.0, sign * (1 + 2**-7)}
    monkeypatch.setattr(master_weights, "DRAWN", 20_000)
    Rounding(3).round(wide, rounded)
    assert abs(float(rounded.double().mean()) - float(wide[0, 0])) < 4 * 2**-7 * (0.21 / 20_000) ** 0.5


def test_rounding_leaves_what_bfloat16_holds_and_takes_any_layout():
    held = torch.randn(6, 4).bfloat16()
    rounded = torch.empty(4, 6, dtype=torch.bfloat16).T
    Rounding(1).round(held.float(), rounded)
    assert torch.equal(rounded, held)
    wide = torch.randn(6, 4)
    flat = torch.empty(6, 4, dtype=torch.bfloat16)
    Rounding(1).round(wide, flat)
    Rounding(1).round(wide, rounded)
    assert torch.equal(rounded, flat)
    again = torch.empty(6, 4, dtype=torch.bfloat16)
    Rounding(2).round(wide, again)
    assert not torch.equal(again, flat)


def test_several_bfloat16_gradients_are_summed_in_float32():
    net = model(torch.bfloat16)
    masters = MasterWeights(net.named_parameters(), ADAMW)
    masters.accumulate(several=True)
    single = []
    for step in range(3):
        copy = model(torch.bfloat16)
        copy(batch(step, torch.bfloat16)).square().sum().backward()
        single.append(copy[0].weight.grad.float())
        net(batch(step, torch.bfloat16)).square().sum().backward()
        assert net[0].weight.grad is None
    assert torch.equal(masters.gradient("0.weight"), single[0] + single[1] + single[2])


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rank_without_rows_takes_part_with_zeros(dtype, several, monkeypatch):
    start = GradientSums.start
    monkeypatch.setattr(GradientSums, "start", lambda self, weight: start(self, weight).fill_(float("nan")))
    net, sent = model(dtype), []
    masters = MasterWeights(net.named_parameters(), ADAMW)
    masters.accumulate(several=several)
    masters.reduce(SimpleNamespace(size=2, sum_tensors=lambda tensors: sent.extend(tensors)))
    assert [tensor.shape for tensor in sent] == [p.shape for p in net.parameters()]
    assert not any(tensor.any() for tensor in sent)


def test_state_goes_round(tmp_path):
    saved, resumed = (MasterWeights(model(torch.bfloat16).named_parameters(), ADAMW) for _ in range(2))
    saved.accumulate(several=False)
    for parameter in saved.compute.values():
        parameter.grad = torch.ones_like(parameter)
    saved.step([1.0], 1.0)
    resumed.load(saved.state())
    assert all(torch.equal(saved.compute[name], resumed.compute[name]) for name in saved.compute)
    assert any(not torch.equal(p, saved.master[name].bfloat16()) for name, p in saved.compute.items())
    for masters in (saved, resumed):
        for parameter in masters.compute.values():
            parameter.grad = torch.full_like(parameter, 0.5)
        masters.step([1.0], 0.5)
    assert all(torch.equal(saved.compute[name], resumed.compute[name]) for name in saved.compute)


def test_norm_of_nothing_is_zero():
    masters = MasterWeights(model(torch.float32).named_parameters(), ADAMW)
    assert masters.norms() == [0.0]
