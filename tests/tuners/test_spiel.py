"""spiel: the sparse layer is the dense one, its entries move exactly as the rules say, a resumed run is the same."""

import math

import pytest
import torch
from torch import nn

from luthier import parts
from luthier.conformance.tiny import tiny_model, tiny_rows
from luthier.conformance.training import GradientDescent, trainer
from luthier.engine.assemble import refuse_other_rules
from luthier.engine.budget import Budget
from luthier.engine.master_weights import MasterWeights
from luthier.engine.trainer import Batching, Saving
from luthier.errors import RecipeError
from luthier.models.delta import WeightDelta
from luthier.tuners._sparse import Rule, SparseLinear, Window, grow_accumulated, grow_momentum, largest, sparse_layers
from luthier.tuners.base import TunerInputs

IDS = torch.arange(12)[None]


def spiel(**options):
    return parts.build("tuner", {"kind": "spiel", **options})


def layer_of(weight, index, source="update"):
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    plain.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return SparseLinear(plain, torch.tensor(index), source)


def masters_of(layer, rule):
    return MasterWeights([("delta", layer.delta)], rule)


def stepped(masters, gradient):
    masters.compute["delta"].grad = gradient
    masters.step([1.0], 1.0)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_the_layer_is_the_dense_one():
    torch.manual_seed(0)
    weight, x = torch.randn(6, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    layer = layer_of(weight, [1, 7, 29])
    layer.delta.data = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    dense = weight.clone()
    dense.view(-1)[layer.index] += layer.delta.detach()
    dense.requires_grad_()
    y, expected = layer(x), x @ dense.T
    assert torch.allclose(y, expected, rtol=1e-14)
    pull = torch.randn_like(y)
    (dx,) = torch.autograd.grad(expected, x, pull, retain_graph=True)
    (dw,) = torch.autograd.grad(expected, dense, pull)
    y.backward(pull)
    assert torch.allclose(x.grad, dx, rtol=1e-14)
    assert torch.allclose(layer.delta.grad, dw.flatten()[layer.index], rtol=1e-14)
    assert layer.weight.grad is None


def test_with_every_entry_active_it_is_dense_adamw():
    torch.manual_seed(0)
    layer = layer_of(torch.randn(4, 3), list(range(12)))
    masters = masters_of(layer, Rule("adamw", lr=0.1))
    dense = nn.Parameter(torch.zeros(12))
    adamw = torch.optim.AdamW([dense], lr=0.1, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0)
    for _ in range(5):
        gradient = torch.randn(12)
        dense.grad = gradient.clone()
        adamw.step()
        stepped(masters, gradient.clone())
    assert torch.allclose(layer.delta, dense, rtol=1e-5, atol=1e-7)


def test_decay_pulls_towards_the_base():
    layer = layer_of(torch.randn(2, 2), [0, 3])
    layer.delta.data = torch.tensor([1.0, -2.0])
    stepped(masters_of(layer, Rule("adamw", lr=0.1, weight_decay=0.5)), torch.zeros(2))
    assert torch.allclose(layer.delta, torch.tensor([0.95, -1.9]))


def test_candidates_are_the_largest_gradients():
    gradient = torch.tensor([[0.1, 0.9, -0.05], [0.2, 0.3, -0.7]])
    for source in ("update", "micro_batch"):
        window = Window()
        window.add_gradient(gradient, 3, source)
        window.close_update(3)
        assert window.candidates.tolist() == [1, 5, 4]
        assert torch.allclose(window.first, torch.tensor([0.9, -0.7, 0.3]))
    assert largest(torch.zeros(5), 3).tolist() == [0, 1, 2]


def test_a_window_sums_updates_not_micro_batches():
    window = Window()
    pieces = [torch.tensor([[1.0, 5.0]]), torch.tensor([[2.0, 0.0]])]
    for piece in pieces:  # the first update, in two micro-batches: 3 and 5
        window.add_gradient(piece, 1, "update")
    window.close_update(1)
    for piece in pieces:
        window.add_gradient(piece, 1, "update")
    window.close_update(1)
    assert window.candidates.tolist() == [1] and window.updates == 2
    assert (float(window.first), float(window.second)) == (10.0, 50.0) and window.dense is None
    window.add_gradient(pieces[0], 1, "update")
    window.forget_update()  # memory ran out: the update is tried again
    assert window.pending is None and float(window.first) == 10.0


@pytest.mark.parametrize("updates, wrong", [(1, 1.3438), (5, 1.0448)])
def test_a_grown_entry_moves_as_if_it_had_been_there(updates, wrong):
    def moved(shift):
        layer = layer_of(torch.zeros(1, 2), [0])
        masters = masters_of(layer, Rule("adamw", lr=0.1))
        stepped(masters, torch.tensor([1e-9]))
        g = 0.3
        layer.window = Window(
            torch.tensor([1]), torch.tensor([g * updates]), torch.tensor([g * g * updates]), updates=updates
        )
        state = masters.optimizer_state("delta")
        grow_accumulated(layer, state, 1)
        assert layer.index.tolist() == [1] and layer.delta.tolist() == [0.0] and state["age"].tolist() == [updates + 1]
        state["age"] += shift
        stepped(masters, torch.tensor([g]))
        return -float(layer.delta.detach()) / (0.1 * g / (g + 1e-6))

    assert moved(0) == pytest.approx(1.0, abs=2e-4)
    assert moved(-1) == pytest.approx(wrong, abs=2e-3)


def test_zero_moments_would_move_too_little():
    age = torch.tensor(6.0, dtype=torch.float64)
    assert float((0.1 / (1 - 0.9**age)) / (0.001 / (1 - 0.999**age)).sqrt()) == pytest.approx(0.5221, abs=1e-4)


def test_dropping_and_growing_keeps_what_is_in_both():
    layer = layer_of(torch.zeros(2, 4), [0, 1, 2, 3])
    masters = masters_of(layer, Rule("adamw", lr=0.1))
    stepped(masters, torch.ones(4))
    layer.delta.data = torch.tensor([0.5, 0.01, 0.02, 0.03])
    state = masters.optimizer_state("delta")
    before = state["exp_avg"].clone()
    # 1, 2, 3 are dropped; 0 is active and cannot grow; 2 is dropped and grown: it keeps everything.
    first = torch.tensor([9.0, 5.0, 4.0])
    layer.window = Window(torch.tensor([0, 2, 6]), first, first.square(), updates=1)
    grow_accumulated(layer, state, 3)
    assert layer.index.tolist() == [0, 6, 2, 3]
    assert torch.equal(layer.delta.data, torch.tensor([0.5, 0.0, 0.02, 0.03]))
    assert torch.equal(state["exp_avg"][[0, 2, 3]], before[[0, 2, 3]]) and state["age"].tolist() == [2, 2, 2, 2]


def test_sm3_by_hand():
    layer = layer_of(torch.zeros(2, 2), [0, 3])
    masters = masters_of(layer, Rule("sm3", lr=1.0, eps=1e-8))
    stepped(masters, torch.tensor([1.0, 2.0]))
    assert torch.allclose(layer.delta, torch.tensor([-1.0, -1.0]))
    stepped(masters, torch.tensor([0.5, 0.0]))
    assert torch.allclose(layer.delta, torch.tensor([-1.44721, -1.0]), atol=1e-5)
    state = masters.optimizer_state("delta")
    assert state["row"].tolist() == state["column"].tolist() == [1.25, 4.0]
    assert torch.outer(state["row"], state["column"]).tolist() == [[1.5625, 5.0], [5.0, 16.0]]
    layer.delta.data = torch.tensor([0.1, 5.0])
    grow_momentum(layer, state, 1)
    assert layer.index.tolist() == [1, 3] and layer.delta.tolist() == [0.0, 5.0]  # 0 was just dropped


def test_the_schedule():
    tuner = spiel()
    reselections = [t for t in range(1, 101) if t % tuner.every == tuner.window]
    assert reselections == [5, 25, 45, 65, 85]
    assert [tuner.share(t, t / 100) for t in reselections] == pytest.approx([1, 0.15, 0.11, 0.07, 0.03])
    assert spiel(decay="cosine").share(50, 0.5) == pytest.approx(0.1)


def run(tuner, updates=8, **more):
    adamw = parts.build("optimizer", {"kind": "adamw", "lr": 1e-2})
    more = {"optimizer": adamw, "budget": Budget("updates", updates), "disturb": False} | more
    return trainer(parts.build("objective", "sft"), tuner, tiny_rows(), Batching(3, 40, "padded"), **more)


@pytest.mark.parametrize("selection", ["accumulated", "momentum"])
def test_invariants_at_every_update(selection):
    tuner = spiel(selection=selection, every=3, window=1, density=0.1, rate=0.9)
    made = run(tuner)
    layers = dict(sparse_layers(made.policy.module))
    frozen = {n: p.detach().clone() for n, p in made.policy.module.named_parameters() if not p.requires_grad}
    places = [{name: layer.index.clone() for name, layer in layers.items()}]

    def look(event):
        t = event["update"]
        for name, layer in layers.items():
            now, before = layer.index, places[-1][name]
            assert len(now.unique()) == len(before)
            changed = now != before
            assert torch.equal(layer.delta[changed], torch.zeros(int(changed.sum()), dtype=torch.float64))
            allowed = math.floor(len(now) * tuner.share(t, t / 8)) if t % 3 == 1 else 0
            assert int(changed.sum()) <= allowed
        places.append({name: layer.index.clone() for name, layer in layers.items()})

    made.observe = look
    made.train()
    moved = sum(int((places[0][name] != places[-1][name]).sum()) for name in layers)
    assert moved > 0
    parameters = dict(made.policy.module.named_parameters())
    assert all(torch.equal(parameters[name], value) and parameters[name].grad is None for name, value in frozen.items())


@pytest.mark.parametrize("selection", ["accumulated", "momentum"])
@pytest.mark.parametrize("stopped_after", [1, 2, 4])
def test_resumed_in_the_middle_it_is_bit_identical(tmp_path, selection, stopped_after):
    tuner = spiel(selection=selection, every=4, window=3, density=0.1, rate=0.9)
    whole = run(tuner)
    whole.train()
    calls = iter([False] * (stopped_after - 1) + [True])
    run(tuner, saving=Saving(tmp_path), stop_requested=lambda: next(calls)).train()
    again = run(tuner, saving=Saving(tmp_path))
    again.resume()
    assert again.position.updates == stopped_after
    again.train()
    for (name, one), (_, other) in zip(
        sparse_layers(whole.policy.module), sparse_layers(again.policy.module), strict=True
    ):
        assert torch.equal(one.index, other.index) and torch.equal(one.delta, other.delta), name
        mine, yours = (m.masters.optimizer_state(f"{name}.delta") for m in (whole, again))
        assert mine.keys() == yours.keys() and all(torch.equal(mine[key], yours[key]) for key in mine)


@pytest.mark.parametrize("size", [1, 60, 10_000])
def test_entries_do_not_depend_on_micro_batches(size):
    tuner = spiel(every=3, window=1, density=0.1, rate=0.9)
    one, other = (run(tuner) for _ in range(2))
    other.micro.tokens = size
    for made in (one, other):
        made.train()
    for (_, mine), (_, yours) in zip(sparse_layers(one.policy.module), sparse_layers(other.policy.module), strict=True):
        assert torch.equal(mine.index, yours.index)
        assert torch.allclose(mine.delta, yours.delta, rtol=1e-6, atol=1e-9)


def test_saved_whole_and_alone(tmp_path):
    tuner = spiel(every=3, window=1, density=0.05)
    made = run(tuner, dtype=torch.bfloat16)
    made.train()
    tuned, base = logits(made.policy.module), logits(tiny_model(torch.bfloat16))
    with tuner.disabled(made.policy.module):
        assert torch.equal(logits(made.policy.module), base)
    tuner.save(made.policy.module, {}, tmp_path)
    assert torch.equal(logits(made.policy.module), tuned) and not torch.equal(tuned, base)
    delta, plain = WeightDelta.load(tmp_path / "delta" / "delta.safetensors"), tiny_model(torch.bfloat16)
    with delta.applied(plain):
        assert torch.equal(logits(plain), tuned)
    assert torch.equal(logits(plain), base)
    assert torch.equal(logits(tuner.merge(made.policy.module)), tuned)


def test_budget_and_places():
    model = tiny_model()
    index = spiel(count=1000).plan(model, TunerInputs(3))["index"]
    sizes = {name: model.get_submodule(name).weight.numel() for name in index}
    total = sum(sizes.values())
    assert "lm_head" not in index and len(index) == 14
    for name, places in index.items():
        assert len(places) == 1000 * sizes[name] // total == len(places.unique())
        assert torch.equal(places, places.sort().values) and int(places[0]) >= 0 and int(places[-1]) < sizes[name]
    again, other = (spiel(count=1000).plan(model, TunerInputs(seed))["index"] for seed in (3, 4))
    assert all(torch.equal(again[name], index[name]) for name in index)
    assert any(not torch.equal(other[name], index[name]) for name in index)


def planted(selection, seed):
    """400 updates towards W + 80 entries of ±0.5; the share of them found and the relative error."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(64, 64, generator=generator) / 8
    places = torch.randperm(4096, generator=generator)[:80]
    change = torch.zeros(4096)
    change[places] = torch.where(torch.rand(80, generator=generator) < 0.5, -0.5, 0.5)
    start = torch.randperm(4096, generator=generator)[:80].sort().values
    tuner, layer = spiel(selection=selection), layer_of(weight, start.tolist())
    masters = masters_of(layer, tuner.optimizer(parts.build("optimizer", {"kind": "adamw", "lr": 0.02})))
    for index in range(1, 401):
        update = type("Update", (), {"index": index, "done": index / 400, "optimizer_state": masters.optimizer_state})()
        tuner.before_update(layer, update)
        x = torch.randn(32, 64, generator=generator)
        ((layer(x) - x @ (weight + change.view(64, 64)).T) ** 2).mean().backward()
        masters.step([1.0], 1.0)
        update.optimizer_state = lambda name: masters.optimizer_state("delta")
        tuner.after_step(layer, update)
    learned = torch.zeros(4096).index_copy(0, layer.index, layer.delta.detach())
    found = float(torch.isin(places, layer.index).float().mean())
    return found, float((learned - change).norm() / change.norm())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_change_is_found(seed):
    found, error = planted("accumulated", seed)
    assert found >= 0.95 and error < 0.2
    fixed, far = planted("fixed", seed)
    assert fixed <= 0.1 and far > 0.9


def test_momentum_finds_more_than_chance():
    found = [planted("momentum", seed)[0] for seed in (0, 1, 2)]
    fixed = [planted("fixed", seed)[0] for seed in (0, 1, 2)]
    assert sum(found) > sum(fixed)


def test_refusals():
    with pytest.raises(RecipeError, match="smaller than"):
        spiel(every=5, window=5)
    with pytest.raises(RecipeError, match="no linear layers"):
        spiel(targets=["lost"]).plan(tiny_model(), TunerInputs())
    betas = parts.build("optimizer", {"kind": "adamw", "betas": [0.5, 0.9]})
    assert spiel().optimizer(betas).betas == (0.5, 0.9)
    with pytest.raises(RecipeError, match="betas"):
        spiel(selection="momentum").optimizer(betas)
    with pytest.raises(RecipeError, match="rule of its own"):
        refuse_other_rules([spiel()], GradientDescent())
    refuse_other_rules([parts.build("tuner", "lora")], GradientDescent())


def test_an_option_that_sm3_lacks_is_refused_if_it_was_changed_and_passes_if_it_is_spelled_out():
    made = parts.build("tuner", {"kind": "spiel", "selection": "momentum"})
    plain = parts.build("optimizer", {"kind": "adamw", "lr": 1e-3})
    spelled = parts.build("optimizer", {"kind": "adamw", **plain.model_dump()})
    assert type(made.optimizer(spelled)) is type(made.optimizer(plain))
    with pytest.raises(RecipeError, match="betas"):
        made.optimizer(parts.build("optimizer", {"kind": "adamw", "betas": [0.5, 0.9]}))
