"""lfu: what the card relates (sizes, slopes, limits), the gradient by finite differences, and nothing left behind."""

from dataclasses import replace

import pytest
import torch

from luthier import parts
from luthier.conformance.base import apart
from luthier.conformance.tiny import tiny_model, tiny_rows
from luthier.conformance.training import trained, trainer
from luthier.data.batches import collate
from luthier.engine.trainer import Batching
from luthier.engine.update import count, run_update
from luthier.errors import RecipeError
from luthier.objectives.base import TokenObjective, Update, total_of
from luthier.objectives.sum import reads_of

WHOLE = Batching(8, 10_000)
MODALITIES = ("lora", "steering")


def lfu(**options):
    return parts.build("objective", {"kind": "lfu", **options})


def full():
    return parts.build("tuner", "full")


def plain_rows():
    rows = tiny_rows()
    for row in rows:
        row.streams["weights"].values[:] = row.streams["weights"].values != 0
    return rows


def reported(objective, tuner=None, **more):
    """What the first update reports; all token weights are 1."""
    events = []
    trained(objective, tuner or full(), WHOLE, plain_rows(), observe=events.append, **more)
    return events[0]


@pytest.mark.parametrize("kind", MODALITIES)
@pytest.mark.parametrize("off", [{"step_size": 0.0}, {"coef": 0.0}])
def test_without_a_step_or_a_coefficient_it_is_its_base(kind, off):
    for base in ("sft", "dft"):
        wanted = trained(parts.build("objective", base), full(), WHOLE)
        assert apart(wanted, trained(lfu(auxiliary=kind, base=base, **off), full(), WHOLE)) < 1e-12
        assert apart(wanted, trained(lfu(auxiliary=kind, base=base), full(), WHOLE)) > 1e-6


@pytest.mark.parametrize("kind", MODALITIES)
def test_before_the_step_the_additions_do_nothing(kind):
    seen = reported(lfu(auxiliary=kind, step_size=0.0))
    assert seen["consistency"] == 0.0 and seen["auxiliary_nll"] == seen["nll"]


@pytest.mark.parametrize("kind", MODALITIES)
def test_the_step_raises_the_loss_by_its_size_times_the_gradient(kind):
    small = 1e-4
    seen = reported(lfu(auxiliary=kind, step_size=small))
    slope = (seen["auxiliary_nll"] - seen["nll"]) / small
    assert slope == pytest.approx(seen["ascent_norm"], rel=1e-2) and seen["ascent_norm"] > 1e-3


@pytest.mark.parametrize("kind", MODALITIES)
def test_consistency_grows_with_the_square_of_the_step(kind):
    one, ten = (reported(lfu(auxiliary=kind, step_size=size))["consistency"] for size in (1e-4, 1e-3))
    assert ten / one == pytest.approx(100, rel=0.05)


def prepared(objective, rows=None):
    """Policy, batch and update of the tiny model, the ascent taken."""
    run = trainer(objective, full(), rows or tiny_rows(), WHOLE)
    batch = collate(rows or tiny_rows())
    update = Update(1, 0, batches=[batch])
    update.counts = count(objective, update.batches, run.world)
    objective.prepare(run.policy, update)
    return run.policy, batch, update


@pytest.mark.parametrize("kind, sites", [("lora", 14), ("steering", 2)])
def test_the_step_has_its_size_over_all_sites_together(kind, sites):
    objective = lfu(auxiliary=kind, step_size=0.3)
    _, _, update = prepared(objective)
    auxiliary, _ = update.prepared_by(objective)
    assert len(auxiliary.values) == sites and not any(value.requires_grad for value in auxiliary.values)
    norm = float(torch.linalg.vector_norm(torch.cat([value.flatten() for value in auxiliary.values])))
    assert norm == pytest.approx(0.3, abs=1e-6)


def test_low_rank_additions_are_fresh_in_each_update_and_repeatable():
    from luthier.objectives.supervised import _auxiliary

    policy = trainer(lfu(), full(), tiny_rows(), WHOLE).policy
    one, same, other = (_auxiliary.make(policy, "lora", [0, 1], 8, key) for key in ("0/1", "0/1", "0/2"))
    downs = [[down for _, down in made.sites] for made in (one, same, other)]
    assert all(torch.equal(a, b) for a, b in zip(downs[0], downs[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(downs[0], downs[2], strict=True))
    assert all(down.shape[0] == 8 and float(down.abs().max()) > 0 for down in downs[0])
    assert not any(value.any() for value in one.values)


def consistency(objective, policy, batch, update, targets):
    """Mean squared distance to fixed hidden states, written out."""
    auxiliary, _ = update.prepared_by(objective)
    where = (batch.weights != 0) & (batch.position_of > 0)
    with auxiliary.attached(), auxiliary.active(), policy.layer_outputs([0, 1]) as pushed:
        policy.hidden(batch)
    return sum(((pushed[i][where] - targets[i]) ** 2).mean() for i in (0, 1)) / 2


@pytest.mark.parametrize("kind", MODALITIES)
def test_the_gradient_is_that_of_the_pushed_states_alone(kind):
    """Finite differences with the plain states and the additions held fixed."""
    objective = lfu(auxiliary=kind, coef=1.0, step_size=0.5)
    policy, batch, update = prepared(objective)
    with objective.micro_batch_context(policy, batch, update):
        total_of(objective.terms(policy, batch, update)[1:], update.counts).backward()
    where = (batch.weights != 0) & (batch.position_of > 0)
    with policy.layer_outputs([0, 1]) as found:
        policy.hidden(batch)
    targets = {i: found[i][where].detach() for i in (0, 1)}
    weight = policy.module.model.layers[0].mlp.up_proj.weight
    step = 0.01 * weight.grad / weight.grad.norm()  # transformers' norm computes in float32: no smaller
    values = []
    for sign in (1, -1):
        weight.data += sign * step
        values.append(float(consistency(objective, policy, batch, update, targets).detach()))
        weight.data -= sign * step
    slope = (values[0] - values[1]) / (2 * float(step.norm()))
    wanted = float((weight.grad * step).sum() / step.norm())
    assert wanted > 1e-6 and slope == pytest.approx(wanted, rel=1e-2)


@pytest.mark.parametrize("kind", MODALITIES)
def test_nothing_stays_behind(kind):
    run = trainer(lfu(auxiliary=kind), full(), tiny_rows(), WHOLE)
    hooks = sum(len(module._forward_hooks) for module in run.policy.module.modules())
    run.train()
    assert sum(len(module._forward_hooks) for module in run.policy.module.modules()) == hooks
    plain = tiny_model()
    plain.load_state_dict(run.policy.module.state_dict())
    ids = tiny_rows()[0].ids[None]
    with torch.no_grad():
        one, other = (m(input_ids=torch.from_numpy(ids).long()).logits for m in (run.policy.module, plain))
    assert torch.equal(one, other)


def test_the_ascent_leaves_no_gradient_on_the_model():
    policy, _, _ = prepared(lfu())
    assert all(p.grad is None for p in policy.module.parameters())


@pytest.mark.parametrize("tuner", ["full", "lora"])
@pytest.mark.parametrize("kind", MODALITIES)
@pytest.mark.parametrize("base", ["sft", "asft"])
def test_checkpointing_changes_no_gradient(checkpointed, tuner, kind, base):
    tuner = parts.build("tuner", tuner)
    objective = lfu(auxiliary=kind, base=base, step_size=0.5)
    pieces = Batching(8, 60)
    assert apart(trained(objective, tuner, pieces), checkpointed(objective, tuner, pieces)) < 1e-9


def test_an_adapter_is_one_site_with_its_layer():
    objective = lfu()
    run = trainer(objective, parts.build("tuner", "lora"), tiny_rows(), WHOLE)
    update = Update(1, 0, batches=[collate(tiny_rows())])
    update.counts = count(objective, update.batches, run.world)
    objective.prepare(run.policy, update)
    assert len(update.prepared_by(objective)[0].sites) == 14


@pytest.mark.parametrize("kind", MODALITIES)
def test_dropout_is_the_same_in_both_forwards(kind):
    tuner = parts.build("tuner", {"kind": "lora", "dropout": 0.5})
    assert reported(lfu(auxiliary=kind, step_size=0.0), tuner)["consistency"] == 0.0


def test_layers_are_thirds_rounded_outwards():
    class Layers:
        layers = range(30)

    assert lfu(layers="early").layer_indices(Layers) == list(range(10))
    assert lfu(layers="middle").layer_indices(Layers) == list(range(10, 20))
    assert lfu(layers="late").layer_indices(Layers) == list(range(20, 30))
    Layers.layers = range(2)
    assert [lfu(layers=name).layer_indices(Layers) for name in ("early", "middle", "late")] == [[0], [0, 1], [1]]


def test_positions_compared():
    batch = collate(tiny_rows(), side="left")
    inner = (batch.example_of >= 0) & (batch.position_of > 0)
    assert torch.equal(lfu(mask="all").compared(batch), inner)
    rows, columns = batch.targets()
    assert int(lfu().compared(batch).sum()) == len(rows) and bool(lfu().compared(batch)[rows, columns].all())


def test_sum_is_the_mean_times_the_width():
    mean, total = (reported(lfu(reduction=one))["consistency"] for one in ("mean", "sum"))
    assert total == pytest.approx(32 * mean)


def test_what_the_base_reads_is_read_and_ift_is_refused():
    assert reads_of(lfu(base="asft")) == ("logits:initial",)
    with pytest.raises(RecipeError, match="cannot use `ift` as its base"):
        trained(lfu(base="ift"), full(), WHOLE)


class Counting(TokenObjective):
    """A base with state: how many updates it has seen."""

    def start(self, policy):
        return State()

    def token_loss(self, view):
        return -view.logprob * (1 + view.update.state_of(self).seen)

    def after_step(self, policy, update):
        update.state_of(self).seen += 1


class State:
    def __init__(self):
        self.seen = torch.zeros(())

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, tensors):
        self.seen = tensors["seen"]


def test_the_base_keeps_its_state():
    run = trainer(lfu(base=Counting()), full(), tiny_rows(), WHOLE)
    run.train()
    assert [float(state.seen) for state in run.states.by_name.values() if state is not None] == [1.0]


def test_in_a_sum_it_is_scaled_whole():
    from luthier.objectives.sum import WeightedSum

    alone = trained(lfu(), full(), WHOLE)
    halved = trained(WeightedSum(members=((lfu(), 0.5),)), full(), WHOLE)
    assert apart({name: 0.5 * t for name, t in alone.items()}, halved) < 1e-6


def test_an_update_is_three_forwards_and_two_backwards_of_the_parameters(monkeypatch):
    """Counted at a layer: plain, pushed, and the ascent, whose backward stops at the additions."""
    objective = lfu(auxiliary="steering")
    run = trainer(objective, full(), tiny_rows(), WHOLE)
    linear = run.policy.module.model.layers[1].mlp.up_proj
    forwards, backwards = [], []
    linear.register_forward_hook(lambda *_: forwards.append(1))
    linear.weight.register_hook(lambda gradient: backwards.append(1))
    update = replace(Update(1, 0), batches=[collate(tiny_rows())])
    run_update(run.policy, objective, run.tuners, run.masters, update, clip=None, factor=1.0, world=run.world)
    assert len(forwards) == 3 and len(backwards) <= 2


def lora(**options):
    return parts.build("tuner", {"kind": "lora", "r": 8, "alpha": 16.0, **options})


def test_the_weight_depends_on_what_is_pushed():
    assert [lfu(auxiliary=kind).weight for kind in ("lora", "steering", "trained")] == [5.0, 0.1, 5.0]
    assert lfu(auxiliary="steering", coef=2.0).weight == 2.0
    terms = {}
    for name, options in {"default": {}, "written": {"coef": 0.1}}.items():
        terms[name] = trained(lfu(auxiliary="steering", **options), full(), WHOLE)
    assert apart(terms["default"], terms["written"]) == 0.0


def pushed_outputs(objective, run, batch, update):
    auxiliary, _ = update.prepared_by(objective)
    with auxiliary.attached(), auxiliary.active(), run.policy.layer_outputs([0, 1]) as pushed:
        run.policy.hidden(batch)
    return pushed


def prepared_adapter(objective, disturb):
    """A trainer of the tiny model with LoRA of scale 2, its batch and update, the ascent taken."""
    run = trainer(objective, lora(), tiny_rows(), WHOLE, disturb=disturb)
    batch = collate(tiny_rows())
    update = Update(1, 0, batches=[batch])
    update.counts = count(objective, update.batches, run.world)
    objective.prepare(run.policy, update)
    return run, batch, update


def test_an_untrained_adapter_is_pushed_as_fresh_additions_with_its_values_and_scale():
    """B is 0, so that the step moves B alone: the text's form with the same A, times the adapter's scale."""
    from luthier.objectives.supervised import _auxiliary

    objective = lfu(auxiliary="trained", step_size=0.3)
    run, batch, update = prepared_adapter(objective, disturb=False)
    downs = [p for name, p in run.policy.module.named_parameters() if "lora_A" in name]
    fresh = _auxiliary.make(run.policy, "lora", [0, 1], 8, "any")
    sites = [(module, 2.0 * down.detach()) for (module, _), down in zip(fresh.sites, downs, strict=True)]
    text = _auxiliary.Auxiliary(sites, [torch.zeros_like(value) for value in fresh.values])
    with text.attached(), text.active():
        loss = total_of(objective.base.terms(run.policy, batch, replace(update, meters={})), update.counts)
    text.ascend(torch.autograd.grad(loss, text.values), 0.3)
    ours = pushed_outputs(objective, run, batch, update)
    update.set_prepared(objective, (text, 0.0))
    theirs = pushed_outputs(objective, run, batch, update)
    with run.policy.layer_outputs([0, 1]) as plain:
        run.policy.hidden(batch)
    for index in (0, 1):
        moved = (ours[index] - plain[index]).abs().max()
        assert moved > 1e-3 and (ours[index] - theirs[index]).abs().max() < 1e-5 * moved


def test_the_adapter_is_never_changed_by_the_push():
    objective = lfu(auxiliary="trained")
    run = trainer(objective, lora(), tiny_rows(), WHOLE)
    before = {name: p.detach().clone() for name, p in run.policy.module.named_parameters()}
    batch = collate(tiny_rows())
    update = Update(1, 0, batches=[batch])
    update.counts = count(objective, update.batches, run.world)
    objective.prepare(run.policy, update)
    assert all(p.grad is None for p in run.policy.module.parameters())
    with objective.micro_batch_context(run.policy, batch, update):
        total_of(objective.terms(run.policy, batch, update), update.counts).backward()
    assert all(torch.equal(p, before[name]) for name, p in run.policy.module.named_parameters())
    pushed = [p.grad for name, p in run.policy.module.named_parameters() if "lora_" in name]
    assert all(gradient is not None and bool(gradient.any()) for gradient in pushed)


@pytest.mark.parametrize("off", [{"step_size": 0.0}, {"coef": 0.0}])
def test_an_adapter_that_is_not_pushed_learns_its_base(off):
    wanted = trained(parts.build("objective", "sft"), lora(), WHOLE)
    assert apart(wanted, trained(lfu(auxiliary="trained", **off), lora(), WHOLE)) < 1e-12
    assert apart(wanted, trained(lfu(auxiliary="trained"), lora(), WHOLE)) > 1e-6


def test_the_gradient_reaches_the_adapter_through_its_pushed_values():
    """Finite differences of the consistency with the plain states and the push held fixed."""
    objective = lfu(auxiliary="trained", coef=1.0, step_size=0.5)
    run, batch, update = prepared_adapter(objective, disturb=True)
    with objective.micro_batch_context(run.policy, batch, update):
        total_of(objective.terms(run.policy, batch, update)[1:], update.counts).backward()
    where = (batch.weights != 0) & (batch.position_of > 0)
    with run.policy.layer_outputs([0, 1]) as found:
        run.policy.hidden(batch)
    targets = {i: found[i][where].detach() for i in (0, 1)}
    weight = next(p for name, p in run.policy.module.named_parameters() if "layers.0.mlp.up_proj.lora_A" in name)
    step = 0.01 * weight.grad / weight.grad.norm()
    values = []
    for sign in (1, -1):
        weight.data += sign * step
        values.append(float(consistency(objective, run.policy, batch, update, targets).detach()))
        weight.data -= sign * step
    slope = (values[0] - values[1]) / (2 * float(step.norm()))
    wanted = float((weight.grad * step).sum() / step.norm())
    assert wanted > 1e-6 and slope == pytest.approx(wanted, rel=1e-2)


def test_checkpointing_changes_no_gradient_of_a_pushed_adapter(checkpointed):
    objective = lfu(auxiliary="trained", step_size=0.5)
    pieces = Batching(8, 60)
    assert apart(trained(objective, lora(), pieces), checkpointed(objective, lora(), pieces)) < 1e-9


def test_without_an_adapter_there_is_nothing_to_push():
    for tuner in (full(), parts.build("tuner", {"kind": "spiel", "density": 0.2})):
        with pytest.raises(RecipeError, match=r"trained.*low-rank adapter"):
            trained(lfu(auxiliary="trained"), tuner, WHOLE)
    half = lora(targets=["q_proj"])
    assert lfu(auxiliary="trained", layers="late").start(trainer(lfu(), half, tiny_rows(), WHOLE).policy) is None
    with pytest.raises(RecipeError, match="rank"):
        lfu(auxiliary="trained", rank=4)


def test_the_tuple_holds_what_the_model_reads_and_what_the_head_reads():
    """transformers' own tuple; of its K + 1 states the first is the same in both forwards."""
    policy, batch = trainer(lfu(), full(), tiny_rows(), WHOLE).policy, collate(tiny_rows())
    with policy.state_tuple() as states:
        policy.hidden(batch)
    own = policy.module(
        input_ids=batch.ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_of,
        output_hidden_states=True,
    ).hidden_states
    assert len(states) == len(own) == 3
    assert all(torch.equal(states[index], state) for index, state in enumerate(own))


def test_the_states_of_the_tuple_are_compared():
    objective = lfu(states="tuple", step_size=0.5)
    run = trainer(objective, full(), tiny_rows(), WHOLE)
    batch = collate(tiny_rows())
    update = Update(1, 0, batches=[batch])
    update.counts = count(objective, update.batches, run.world)
    objective.prepare(run.policy, update)
    auxiliary, _ = update.prepared_by(objective)
    with objective.micro_batch_context(run.policy, batch, update):
        term = objective.terms(run.policy, batch, update)[1]
    with run.policy.state_tuple() as plain:
        run.policy.hidden(batch)
    with auxiliary.attached(), auxiliary.active(), run.policy.state_tuple() as pushed:
        run.policy.hidden(batch)
    where = objective.compared(batch)
    by_state = [((plain[i] - pushed[i])[where] ** 2).mean(-1).sum() for i in range(3)]
    assert float(by_state[0].detach()) == 0.0 and float(term.total.detach()) == pytest.approx(
        float(sum(by_state).detach()) / 3, rel=1e-12
    )
    with pytest.raises(RecipeError, match="layers"):
        lfu(states="tuple", layers="late")


@pytest.mark.parametrize("kind", MODALITIES)
def test_the_ascent_is_not_seen_by_a_tuner_that_collects_gradients(kind):
    """spiel looks for new entries in the gradient of the loss, of which the ascent's is no part."""
    from luthier.tuners._sparse import Window, sparse_layers

    objective = lfu(auxiliary=kind)
    run = trainer(objective, parts.build("tuner", {"kind": "spiel", "density": 0.2}), tiny_rows(), WHOLE)
    batch = collate(tiny_rows())
    update = Update(1, 0, batches=[batch])
    update.counts = count(objective, update.batches, run.world)
    layers = [layer for _, layer in sparse_layers(run.policy.module)]
    for layer in layers:
        layer.window = Window()
    objective.prepare(run.policy, update)
    assert all(layer.window.dense is None for layer in layers)
    with objective.micro_batch_context(run.policy, batch, update):
        total_of(objective.terms(run.policy, batch, update), update.counts).backward()
    assert all(bool(layer.window.dense.any()) for layer in layers)
