"""s2ft: picked heads and channels are the only thing that moves, exactly as dense training would move them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from luthier import parts
from luthier.conformance.base import apart
from luthier.conformance.tiny import tiny_model, tiny_rows
from luthier.conformance.training import GradientDescent, trained, trainer
from luthier.engine.assemble import Parts, refuse_excluded, tuned_policy
from luthier.engine.budget import Budget
from luthier.engine.trainer import Batching
from luthier.errors import RecipeError
from luthier.models.delta import WeightDelta, compose
from luthier.tuners import _units
from luthier.tuners._slices import SliceLinear, slices_of
from luthier.tuners.base import TunerInputs
from support.saved import saved_bytes

IDS = torch.arange(12)[None]
ALL = {"o_proj": 0.5, "v_proj": 0.5, "down_proj": 0.2, "up_proj": 0.2}
WHOLE = Batching(8, 10_000, "padded")


def s2ft(**options):
    return parts.build("tuner", {"kind": "s2ft", **options})


def applied(model, seed=0, **options):
    tuner = s2ft(**options)
    return tuner, tuner.apply(model, tuner.plan(model.requires_grad_(False), TunerInputs(seed, tiny_rows())))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def run(tuner, updates=4, **more):
    sft = parts.build("objective", "sft")
    more = {"optimizer": GradientDescent(lr=0.5), "budget": Budget("updates", updates), "disturb": False} | more
    made = trainer(sft, tuner, tiny_rows(), WHOLE, **more)
    losses = []
    made.observe = lambda event: losses.append(event["loss"])
    made.train()
    return made, losses


def test_the_order_of_channels():
    picked_up, picked_down = [3, 5, 7, 9], [2, 7, 9, 11, 15]
    order = _units.unit_order(20, picked_up, picked_down).tolist()
    assert order[:7] == [3, 5, 7, 9, 2, 11, 15]
    assert sorted(order[:4]) == picked_up and sorted(order[2:7]) == picked_down and sorted(order) == list(range(20))


def test_heads_stay_in_their_groups():
    order = _units.head_order(12, 4, [], [2, 3, 4, 5, 11]).reshape(4, 3)
    assert all(len({head // 3 for head in group}) == 1 for group in order.tolist())
    places = [order.flatten().tolist().index(head) for head in (2, 3, 4, 5, 11)]
    assert sorted(places) == [2, 3, 4, 5, 6]  # one range, from two groups in part and one in full
    assert _units.head_order(4, 4, [1], [3]).tolist() == [1, 3, 0, 2]  # without groups: as channels


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_permuting_keeps_the_function(seed):
    model = tiny_model()
    before, weights = logits(model), {n: p.detach().clone() for n, p in model.named_parameters()}
    tuner, tuned = applied(model, seed, targets=ALL, permute=True)
    assert any(not torch.equal(weights[n.replace("slice", "weight")], p) for n, p in tuned.named_parameters())
    assert float((logits(tuned) - before).abs().max()) < 1e-13
    merged = tuner.merge(tuned)
    assert all(torch.equal(p, weights[n]) for n, p in merged.named_parameters())  # the own order again


def test_what_breaks_the_function():
    def moved(order_of_heads):
        model = tiny_model()
        before = logits(model)
        next(block for block in _units.blocks(model) if block.heads).permute(torch.tensor(order_of_heads))
        return float((logits(model) - before).abs().max())

    assert moved([1, 0, 3, 2]) < 1e-13 and moved([2, 3, 1, 0]) < 1e-13
    assert moved([2, 1, 0, 3]) > 1e-4  # a head left its group
    model = tiny_model()
    before = logits(model)
    mlp = model.model.layers[0].mlp
    order = torch.arange(48).flip(0)
    mlp.up_proj.weight.data = mlp.up_proj.weight.data[order]
    mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, order]
    assert float((logits(model) - before).abs().max()) > 1e-4  # the gate stayed behind


def test_something_per_head_is_not_permuted_blindly():
    model = tiny_model()
    model.model.layers[0].self_attn.sinks = nn.Parameter(torch.zeros(4))
    with pytest.raises(RecipeError, match="sinks"):
        applied(model, permute=True)
    applied(model, permute=False)


@pytest.mark.parametrize("permute", [False, True])
def test_the_gradient_is_the_slice_of_the_dense_gradient(permute):
    dense, (_, tuned) = tiny_model(), applied(tiny_model(), targets=ALL, permute=permute)
    for model in (dense, tuned):
        functional.cross_entropy(model(input_ids=IDS).logits[0, :-1], IDS[0, 1:]).backward()
    layers = list(slices_of(tuned))
    assert len(layers) >= 6
    for name, layer in layers:
        whole = dense.get_parameter(f"{name}.weight").grad
        expected = whole.index_select(layer.dim, layer.origin)
        assert float((layer.slice.grad - expected).norm() / expected.norm()) < 1e-12
        assert layer.weight.grad is None


class Beside(nn.Module):
    """The delta form: y = W x + P x[I] for columns, y[I] += P x for rows."""

    def __init__(self, layer):
        super().__init__()
        self.weight, self.index, self.dim = layer.weight.detach(), layer.index, layer.dim
        self.part = nn.Parameter(torch.zeros_like(layer.slice))

    def forward(self, x):
        y = functional.linear(x, self.weight)
        if self.dim == 1:
            return y + functional.linear(x[..., self.index], self.part)
        return y.index_add(-1, self.index, functional.linear(x, self.part))


def test_in_place_gathered_and_delta_form_take_one_path():
    losses = [run(s2ft(targets=ALL, permute=permute))[1] for permute in (False, True)]
    tuner, model = applied(tiny_model(), targets=ALL)
    layers = [(name, Beside(layer)) for name, layer in slices_of(model)]
    for name, layer in layers:
        parent, _, key = name.rpartition(".")
        setattr(model.get_submodule(parent), key, layer)

    class Delta(type(tuner)):
        def plan(self, model, inputs):
            return {}

        def apply(self, model, plan):
            return delta_model

    delta_model = model
    losses.append(run(Delta(targets=ALL))[1])
    assert losses[0][0] - losses[0][-1] > 1e-3
    assert losses[1] == pytest.approx(losses[0], rel=1e-12) and losses[2] == pytest.approx(losses[0], rel=1e-12)


def test_nothing_outside_the_slices_changes():
    made, _ = run(s2ft(targets=ALL), optimizer=parts.build("optimizer", {"kind": "adamw", "lr": 1e-2}))
    base = tiny_model()
    slices = dict(slices_of(made.policy.module))
    for name, value in made.tuners[0].merge(made.policy.module).named_parameters():
        before, owner = base.get_parameter(name), slices.get(name.removesuffix(".weight"))
        outside = torch.ones_like(before, dtype=torch.bool)
        if owner is not None:
            outside.index_fill_(owner.dim, owner.origin, False)
            assert bool((value != before)[~outside].all())
        assert torch.equal(value[outside], before[outside])


class DownOnly(parts.load("tuner", "full")):
    def apply(self, model, plan):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("down_proj" in name)
        return model


def test_a_share_of_one_is_dense_training():
    adamw = parts.build("optimizer", {"kind": "adamw", "lr": 1e-2, "weight_decay": 0.1})
    dense, one = run(DownOnly(), optimizer=adamw)
    sliced, other = run(s2ft(targets={"down_proj": 1.0}), optimizer=adamw)
    assert one == pytest.approx(other, rel=1e-12)
    weights = {n.removesuffix("weight"): p.detach() for n, p in dense.masters.master.items()}
    slices = {n.removesuffix("slice"): p.detach() for n, p in sliced.masters.master.items()}
    assert apart(weights, slices) < 1e-12


def test_the_delta_is_what_was_learned(tmp_path):
    made, _ = run(s2ft(targets=ALL, permute=True), dtype=torch.float32)
    tuner, module = made.tuners[0], made.policy.module
    tuned = logits(module)
    tuner.save(module, {n: m.detach() for n, m in made.masters.master.items()}, tmp_path)
    assert torch.equal(logits(module), tuned)
    delta = WeightDelta.load(tmp_path / "delta" / "delta.safetensors")
    base = tiny_model(torch.float32)
    before = logits(base)
    with delta.applied(base):
        assert torch.allclose(logits(base), tuned, atol=1e-5)
    assert torch.equal(logits(base), before)
    twice = compose([(delta, 0.5), (delta, 0.5)])
    twice.merge_into(base)
    assert torch.allclose(logits(base), tuned, atol=1e-5) and not torch.allclose(before, tuned, atol=1e-3)


@pytest.mark.parametrize("permute", [False, True])
def test_disabled_gives_the_exact_start(permute):
    tuner, model = applied(tiny_model(torch.bfloat16), targets=ALL, permute=permute)
    before = logits(model)
    with torch.no_grad():
        for _, layer in slices_of(model):
            layer.slice += 0.3
    after = logits(model)
    assert not torch.equal(after, before)
    output = model(input_ids=IDS).logits
    with tuner.disabled(model):
        assert torch.equal(logits(model), before)
    output.sum().backward()  # the scope between forward and backward does no harm
    assert torch.equal(logits(model), after)


def test_counts_of_the_published_runs():
    from transformers import LlamaConfig, LlamaForCausalLM

    def picked(targets, **config):
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=32, hidden_size=4096, vocab_size=8, **config))
        units = s2ft(targets=targets).plan(model, TunerInputs())["picked"]
        return [sum(len(u) for name, u in units.items() if name.endswith(key)) for key in ("o_proj", "down_proj")]

    seven = {"intermediate_size": 11008, "num_attention_heads": 32}
    assert picked({"o_proj": 0.052, "down_proj": 0.02}, **seven) == [53, 7045]
    eight = {"intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    assert picked({"down_proj": 0.03}, **eight) == [0, 13762]


def planned(**options):
    model = tiny_model().requires_grad_(False)
    return s2ft(targets={"down_proj": 0.1}, **options).plan(model, TunerInputs(0, tiny_rows()))["picked"], model


def test_selection_by_weight_and_its_opposite():
    picked, model = planned(selection="weight")
    norms = {n: model.get_parameter(f"{n}.weight").norm(dim=0) for n in picked}
    low = max(float(norm[[u for u in range(48) if u not in picked[n]]].max()) for n, norm in norms.items())
    assert min(float(norms[n][units].min()) for n, units in picked.items()) > low
    smallest = planned(selection="weight", smallest=True)[0]
    assert all(not set(picked[n].tolist()) & set(smallest.get(n, torch.tensor([])).tolist()) for n in picked)


def test_selection_by_gradient_is_the_largest_dense_gradient():
    picked, model = planned(selection="gradient", calibration=3)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    rows = TunerInputs(0, tiny_rows()).first(3)
    change = trained(parts.build("objective", "sft"), DownOnly(), Batching(3, 10_000), rows=rows, disturb=False)
    norms = torch.cat([change[f"model.layers.{i}.mlp.down_proj.weight"].norm(dim=0) for i in range(2)])
    expected = sorted(norms.topk(9).indices.tolist())
    assert sorted(int(u) + 48 * int(name.split(".")[2]) for name, units in picked.items() for u in units) == expected


def test_padding_does_not_count_as_activation():
    from luthier.data.batches import collate
    from luthier.tuners._scores import activation_scores

    model, rows = tiny_model(), tiny_rows()[:2]
    layers = _units.unit_layers(model, "down_proj")
    alone = [activation_scores(model, layers, collate([row])) for row in rows]
    both = activation_scores(model, layers, collate(rows))
    lengths = [len(row) for row in rows]
    assert lengths[0] != lengths[1]
    for index, score in enumerate(both):
        mean = (alone[0][index] * lengths[0] + alone[1][index] * lengths[1]) / sum(lengths)
        assert torch.allclose(score, mean, rtol=1e-5)


def test_less_is_kept_for_the_backward_than_with_lora():
    _, sliced = applied(tiny_model(), targets={"down_proj": 0.1, "o_proj": 0.1})
    lora = parts.build("tuner", {"kind": "lora", "r": 1, "targets": ["down_proj", "o_proj"]})
    adapted = lora.apply(tiny_model().requires_grad_(False), {"seed": 0})
    assert saved_bytes(sliced, IDS) < saved_bytes(adapted, IDS)


def test_a_saved_slice_is_a_copy_not_a_view():
    plain = nn.Linear(64, 8).requires_grad_(False)
    layer = SliceLinear(plain, torch.arange(3, 5), 1, torch.arange(3, 5))
    assert saved_bytes(layer, torch.randn(1, 10, 64, requires_grad=True)) == 10 * 2 * 4


def test_lora_on_top_trains_both_and_merges():
    tuners = (s2ft(targets=ALL, permute=True), parts.build("tuner", {"kind": "lora", "r": 2}))
    sft = parts.build("objective", "sft")
    policy = tuned_policy(tiny_model(torch.float32), Parts(sft, tuners, None, None), TunerInputs(0, tiny_rows()))
    names = [name for name, p in policy.module.named_parameters() if p.requires_grad]
    assert any(".slice" in name for name in names) and any("lora_" in name for name in names)
    with torch.no_grad():
        for p in policy.module.parameters():
            if p.requires_grad:
                p += 0.1
    tuned = logits(policy.module)
    module = policy.module
    for tuner in tuners:
        module = tuner.merge(module)
    assert type(module.model.layers[0].mlp.down_proj) is nn.Linear
    assert torch.allclose(logits(module), tuned, atol=1e-4)


def test_refusals():
    with pytest.raises(RecipeError, match="cannot be combined"):
        refuse_excluded([parts.build("tuner", "full"), s2ft()])
    with pytest.raises(RecipeError, match="share"):
        applied(tiny_model(), targets={"down_proj": 1.5})
    with pytest.raises(RecipeError, match="training records"):
        s2ft(selection="gradient").plan(tiny_model(), TunerInputs())
    lora = parts.build("tuner", "lora")
    with pytest.raises(RecipeError, match="no linear layers called"):
        applied(lora.apply(tiny_model(), {"seed": 0}))
