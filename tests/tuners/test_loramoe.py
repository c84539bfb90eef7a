"""loramoe: experts behind a router; the balance of their use, whatever the update's cut."""

import itertools
import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from luthier import parts
from luthier.conformance.base import Failed, apart
from luthier.conformance.tiny import tiny_model, tiny_rows, with_random_fields
from luthier.conformance.training import check_invariance, check_ranks, trained, trainer
from luthier.data.batches import collate
from luthier.engine.assemble import refuse_excluded
from luthier.engine.trainer import Batching
from luthier.errors import DataError, ModelError, RecipeError
from luthier.models.context import checkpoint_layers, forward_context
from luthier.models.loading.load import load_model
from luthier.models.policy import TokenPolicy
from luthier.objectives.base import CoupledObjective
from luthier.recipe import load_recipe
from luthier.recipe.settings import Model as ModelSettings
from luthier.run_folder import append_jsonl, read_jsonl
from luthier.steps.evaluate import evaluate_model
from luthier.steps.run import run_recipe
from luthier.tuners._experts import USAGE, ExpertLinear, Usage, expectations, experts_of, imbalance
from luthier.tuners.base import TunerInputs
from luthier.types import Term
from luthier.update import Update

IDS = torch.arange(12)[None]
WHOLE = Batching(8, 10_000, "padded")
TYPED = {"types": "task_type", "delta": 0.1, "dropout": 0.0}


def loramoe(**options):
    return parts.build("tuner", {"kind": "loramoe", **options})


def sft():
    return parts.build("objective", "sft")


def applied(model, seed=0, **options):
    tuner = loramoe(**options)
    return tuner, tuner.apply(model.requires_grad_(False), tuner.plan(model, TunerInputs(seed)))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def layer(experts=4, r=2, scale=3.0, seed=0, width=(6, 5)):
    """A layer whose experts all do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        mixture = ExpertLinear(nn.Linear(*width).double(), experts, r, scale, 0.0, generator)
        nn.init.normal_(mixture.up)
    return mixture.requires_grad_(False)


def inputs(seed=0):
    return torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_rank(layer, x, down, up, scale):
    return functional.linear(x, layer.weight, layer.bias) + scale * functional.linear(functional.linear(x, down), up)


def test_at_first_the_model_is_the_base():
    before = logits(tiny_model())
    tuner, model = applied(tiny_model())
    assert torch.equal(logits(model), before)
    assert len(list(experts_of(model))) == 6 and all(isinstance(m, nn.Linear) for _, m in experts_of(model))
    trained_names = {name.rpartition(".")[2] for name, _ in tuner.parameters(model)}
    assert trained_names == {"down", "up", "router"}


def test_disabled_is_the_base_in_its_exact_bits():
    tuner, model = applied(tiny_model())
    for _, mixture in experts_of(model):
        nn.init.normal_(mixture.up.data)
    base = logits(tiny_model())
    with tuner.disabled(model):
        assert torch.equal(logits(model), base)
    assert float((logits(model) - base).abs().max()) > 1e-3


def test_the_sum_of_the_card():
    mixture, x = layer(), inputs()
    shares = torch.softmax(x @ mixture.router.T, -1)
    downs, ups = mixture.down.split(2), mixture.up.split(2, dim=1)
    expected = functional.linear(x, mixture.weight, mixture.bias)
    for i, (down, up) in enumerate(zip(downs, ups, strict=True)):
        expected = expected + 3.0 * shares[..., i : i + 1] * (x @ down.T @ up.T)
    assert float((mixture(x) - expected).abs().max()) < 1e-12


@pytest.mark.parametrize("seed", [0, 1])
def test_one_expert_is_lora_whatever_its_router(seed):
    mixture, x = layer(experts=1, seed=seed), inputs()
    assert float((mixture(x) - low_rank(mixture, x, mixture.down, mixture.up, 3.0)).abs().max()) < 1e-12


def test_equal_experts_are_one_lora_whatever_the_router():
    mixture, x = layer(), inputs()
    with torch.no_grad():
        mixture.down.copy_(mixture.down[:2].repeat(4, 1))
        mixture.up.copy_(mixture.up[:, :2].repeat(1, 4))
    assert float((mixture(x) - low_rank(mixture, x, mixture.down[:2], mixture.up[:, :2], 3.0)).abs().max()) < 1e-12


def test_a_uniform_router_is_lora_of_all_ranks_at_a_share_of_the_scale():
    mixture, x = layer(), inputs()
    nn.init.zeros_(mixture.router)
    assert float((mixture(x) - low_rank(mixture, x, mixture.down, mixture.up, 3.0 / 4)).abs().max()) < 1e-12


def test_the_numbers_of_the_balance():
    """Of the published form over a batch of two rows; the code's labels are those of the other sign."""
    q = torch.tensor([[4.0, 2, 2, 2], [2, 2, 3, 3]], dtype=torch.float64)
    types = torch.tensor([0.0, 1.0])
    for delta, squared, plain in ((0.1, 0.05046, 0.12362), (-0.1, 0.15203, 0.38768), (0.0, 0.09143, 0.22857)):
        z = (expectations(types, 4, delta) * q).flatten()
        assert float(imbalance(z)) == pytest.approx(squared, abs=5e-6)
        assert float(imbalance(z, "mean")) == pytest.approx(plain, abs=5e-6)
    for rows, expected in ((2, 0.01143), (8, 0.01032)):
        z = expectations(torch.arange(rows) % 2, 4, 0.1).flatten()
        assert float(imbalance(z)) == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize("by_row", [True, False])
def test_the_least_imbalance_gives_home_the_larger_share(by_row):
    """Over free logits both the published form and that of each row reach 0 at the same shares."""
    types = torch.tensor([0.0, 1.0])
    free = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    adam = torch.optim.Adam([free], lr=0.05)
    for _ in range(600):
        z = expectations(types, 4, 0.1) * torch.softmax(free, -1)
        loss = imbalance(z).sum() if by_row else imbalance(z.flatten())
        adam.zero_grad()
        loss.backward()
        adam.step()
    wanted = torch.tensor([[0.275, 0.275, 0.225, 0.225], [0.225, 0.225, 0.275, 0.275]], dtype=torch.float64)
    assert float(loss.detach()) < 1e-6
    assert float((torch.softmax(free, -1).detach() - wanted).abs().max()) < 1e-3


def test_experts_of_a_group_are_alike_and_groups_are_the_types():
    q = torch.rand(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    of_type_0, of_type_1 = (imbalance(expectations(torch.full((2,), t), 4, 0.1) * q) for t in (0.0, 1.0))
    within = imbalance(expectations(torch.zeros(2), 4, 0.1) * q[:, [1, 0, 3, 2]])
    across = imbalance(expectations(torch.zeros(2), 4, 0.1) * q[:, [2, 3, 0, 1]])
    assert torch.allclose(within, of_type_0, rtol=1e-12) and torch.allclose(across, of_type_1, rtol=1e-12)
    assert not torch.allclose(of_type_0, of_type_1, rtol=1e-3)


def terms_of(tuner, model, batch):
    update = Update(index=1, seed=0, batches=[batch])
    policy = TokenPolicy(model)
    with tuner.micro_batch_context(policy, batch, update):
        policy.hidden(batch)
        (term,) = tuner.terms(policy, batch, update)
    return term


def test_the_term_is_the_sum_over_rows_and_layers():
    tuner, model = applied(tiny_model(), **TYPED)
    rows = with_random_fields(tiny_rows(4), tuner.fields)
    term = terms_of(tuner, model, collate(rows))
    assert (term.unit, term.coefficient) == ("rows", 0.1)
    kept, total = {}, 0.0
    for _, mixture in experts_of(model):
        mixture.register_forward_hook(lambda m, x, y: kept.update({m: m.shares(x[0]).detach()}))
    for row in rows:  # one at a time, without padding
        model(input_ids=torch.tensor(row.ids)[None].long())
        for mixture in list(kept):
            q = kept[mixture][0].sum(0)
            total += float(imbalance(expectations(torch.tensor([row.streams["field:task_type"].values]), 8, 0.1) * q))
    assert float(term.total.detach()) == pytest.approx(total, rel=1e-10)
    left = terms_of(tuner, model, collate(rows, side="left"))
    assert float(left.total.detach()) == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize("options", [TYPED, {"form": "mean", "dropout": 0.0, "balance": 1.0}])
def test_the_gradient_does_not_feel_how_the_update_was_cut(options):
    check_invariance([sft()], loramoe(**options))
    check_ranks(sft(), loramoe(**options))


def test_a_published_sum_over_a_micro_batch_would_feel_it(monkeypatch):
    def pooled(self, policy, batch, update):
        z = torch.stack([q.flatten() for q in self._used(policy, batch)])
        return [Term(imbalance(z).sum(), None, 1.0)]

    monkeypatch.setattr(type(loramoe()), "terms", pooled)
    with pytest.raises(Failed, match="the gradient differs"):
        check_invariance([sft()], loramoe(dropout=0.0))


def test_pooled_the_rows_of_a_micro_batch_are_balanced_together():
    """As published: one variance over the entries of all rows. A micro-batch counts as much as it has rows."""
    tuner, model = applied(tiny_model(), pool="micro_batch", **TYPED)
    rows = with_random_fields(tiny_rows(4), tuner.fields)
    batch = collate(rows)
    usage = Usage(batch)
    with forward_context(**{USAGE: usage}):
        TokenPolicy(model).hidden(batch)
    expected = expectations(batch.streams["field:task_type"].values, 8, 0.1)
    total = sum(float(imbalance((expected * q).flatten()).detach()) for q in usage.by_layer.values())
    term = terms_of(tuner, model, batch)
    assert (term.unit, term.coefficient) == ("rows", 0.1)
    assert float(term.total.detach()) == pytest.approx(4 * total, rel=1e-12)
    by_row, _ = applied(tiny_model(), **TYPED)
    assert float(terms_of(by_row, model, batch).total.detach()) != pytest.approx(4 * total, rel=1e-2)
    single = collate(rows[:1])
    pooled, apart_ = (terms_of(t, model, single).total.detach() for t in (tuner, by_row))
    assert float(pooled) == pytest.approx(float(apart_), rel=1e-12)


def test_balance_moves_the_router_and_nothing_is_asked_without_it():
    with_, without = (trained(sft(), loramoe(balance=b, dropout=0.0), WHOLE) for b in (1.0, 0.0))
    differ = {name for name in with_ if not torch.equal(with_[name], without[name])}
    assert any(name.endswith("router") for name in differ)
    assert apart(with_, without) > 1e-3


def gradients(checkpointing, objective):
    tuner = loramoe(balance=1.0, **TYPED)
    run = trainer(parts.build("objective", objective), tuner, tiny_rows(), WHOLE)
    if checkpointing:
        checkpoint_layers(run.policy.module)
    before = {name: p.detach().clone() for name, p in run.masters.master.items()}
    events = []
    run.observe = events.append
    run.train()
    return {name: p.detach() - before[name] for name, p in run.masters.master.items()}, events[0]


@pytest.mark.parametrize("objective", ["sft", "lfu"])
def test_checkpointing_changes_nothing(objective):
    (plain, reported), (again, reported_again) = (gradients(on, objective) for on in (False, True))
    assert apart(plain, again) < 1e-12
    assert reported["imbalance"] == pytest.approx(reported_again["imbalance"], rel=1e-12) and reported["imbalance"] > 0


class Meets(CoupledObjective):
    """Records meet, and the forward of a whole update has happened before its backward begins."""

    def features(self, policy, batch):
        hidden = policy.hidden(batch)
        rows, columns = batch.targets()
        owner = batch.example_of[rows, columns]
        return {
            "mean": torch.zeros(len(batch.examples), hidden.shape[1], dtype=hidden.dtype).index_add(0, owner, hidden)
        }

    def coupled_loss(self, features, streams, update):
        return [Term(features["mean"].sum(0).square().sum() * 1e-3, "records")]


def test_records_that_meet_are_balanced_too():
    """Whole, the two losses go back one after the other, and the model's norms round each to float32."""
    whole, pieces = (
        trained(Meets(), loramoe(balance=1.0, dropout=0.0), batching) for batching in (WHOLE, Batching(8, 60, "packed"))
    )
    without = trained(Meets(), loramoe(balance=0.0, dropout=0.0), WHOLE)
    assert apart(whole, pieces) < 1e-6 and apart(whole, without) > 1e-3


def toy(beta, seed, steps=600):
    """Two clusters of inputs that need different updates of rank 2: error, imbalance, share of the first half."""
    draw = torch.Generator().manual_seed(seed)
    centre = torch.randn(2, 16, generator=draw) * 2
    wanted = [torch.randn(16, 2, generator=draw) @ torch.randn(2, 16, generator=draw) / 8 for _ in range(2)]
    generator = torch.Generator().manual_seed(seed + 100)
    plain = nn.Linear(16, 16, bias=False)
    nn.init.zeros_(plain.weight).requires_grad_(False)
    mixture = ExpertLinear(plain, 4, 2, 1.0, 0.0, generator)
    adam = torch.optim.Adam([mixture.down, mixture.up, mixture.router], lr=1e-2)

    def batch(rows):
        types = torch.arange(rows) % 2
        x = centre[types][:, None] + torch.randn(rows, 16, 16, generator=draw)
        y = torch.stack([v @ wanted[t].T for v, t in zip(x, types.tolist(), strict=True)])
        return types, x, y

    for _ in range(steps):
        types, x, y = batch(8)
        q = mixture.shares(x).sum(1)
        loss = functional.mse_loss(mixture(x), y) + beta * imbalance(expectations(types, 4, 0.1) * q).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        types, x, y = batch(512)
        shares = mixture.shares(x)
        lost = imbalance(expectations(types, 4, 0.1) * shares.sum(1)).mean()
        first = [float(shares[types == t][..., :2].sum(-1).mean()) for t in (0, 1)]
        return float(functional.mse_loss(mixture(x), y)), float(lost), first


@pytest.mark.parametrize("seed", [0, 1])
def test_balance_is_bought_with_error(seed):
    trials = [toy(beta, seed) for beta in (0.0, 0.1, 1.0, 10.0)]
    lost = [trial[1] for trial in trials]
    assert all(more > less for more, less in itertools.pairwise(lost))
    assert trials[2][0] > trials[0][0]
    assert trials[3][2][0] == pytest.approx(0.55, abs=0.03) and trials[3][2][1] == pytest.approx(0.45, abs=0.03)


def test_what_a_forward_notes():
    """`Usage` finds in a forward what the layer's shares sum to, and forwards without gradient leave nothing."""
    mixture, batch = layer(), collate(tiny_rows(3))
    x = torch.randn(*batch.ids.shape, 6, dtype=torch.float64)
    usage = Usage(batch)
    with forward_context(**{USAGE: usage}):
        with torch.no_grad():
            mixture(x)
        assert not usage.by_layer
        mixture(x[:1])
        assert not usage.by_layer
        mixture(x)
        mixture(x + 1)
    expected = torch.stack([mixture.shares(x[i, : len(row.ids)]).sum(0) for i, row in enumerate(tiny_rows(3))])
    assert torch.allclose(usage.by_layer[mixture], expected, rtol=1e-12)


@pytest.fixture
def data(tmp_path):
    for index, word in enumerate(f"{a}{b}{c}" for a in "abc" for b in "fg" for c in "kl"):
        line = {"prompt": f"reverse {word}", "completion": word[::-1], "task_type": index % 2}
        append_jsonl(tmp_path / "data.jsonl", line)
    return tmp_path


def recipe(folder, *overrides, **more):
    content = {
        "model": "nano",
        "data": {"train": "data.jsonl", "validation": None, "test": 4},
        "train": {
            "tuner": {"kind": "loramoe", "experts": 4, "types": "task_type", "delta": 0.1},
            "batch": {"records": 4},
            "optimizer": {"kind": "adamw", "lr": 0.01},
            "precision": "float32",
        },
        "budget": {"updates": 2},
        "evaluate": {"metric": "exact", "perplexity": False},
        "generate": {"max_new_tokens": 8},
    }
    return load_recipe({**content, **more}, overrides=list(overrides), base=folder)


def test_a_run_leaves_what_eval_reads_and_nothing_trains_further(data, monkeypatch):
    from rich.console import Console

    run_recipe(recipe(data), data / "run", ["target"])
    left = data / "run" / "model"
    assert json.loads((left / "tuner.json").read_text())["kind"] == "loramoe"
    assert not (left / "config.json").exists()  # plain transformers must not take the base for the result
    assert all(line["imbalance"] > 0 for line in read_jsonl(data / "run" / "metrics.jsonl"))
    monkeypatch.chdir(data)
    precision = ["train.precision=float32", "generate.max_new_tokens=8"]
    options = {"data": "data.jsonl", "metric": "exact", "limit": None, "overrides": precision, "console": Console()}
    predictions = {item.id: item.prediction for item in evaluate_model("run", **options).items}
    base = {item.id: item.prediction for item in evaluate_model("nano", **options).items}
    recorded = {line["id"]: line["prediction"] for line in read_jsonl(data / "run" / "evaluation.jsonl")}
    assert len(recorded) == 4 and all(predictions[name] == text for name, text in recorded.items())
    assert predictions != base
    with pytest.raises(RecipeError, match="cannot be trained further"):
        run_recipe(recipe(data, model=str(left)), data / "again", [])


def test_what_it_weighs_changes_its_name(data):
    run_recipe(recipe(data), data / "run", [])
    left = data / "run" / "model"
    settings = ModelSettings(path=str(left), dtype="float32")
    first = load_model(settings, data)
    assert first.tuner == "loramoe" and not any(p.requires_grad for p in first.module.parameters())
    spec = json.loads((left / "tuner.json").read_text())
    (left / "tuner.json").write_text(json.dumps(spec | {"alpha": 8.0}))
    assert load_model(settings, data).weights_id != first.weights_id
    (left / "experts.safetensors").unlink()
    with pytest.raises(ModelError):
        load_model(settings, data)


def test_a_step_after_it_is_refused_before_the_first(data):
    steps = {"warm": {"do": "train"}, "polish": {"do": "train"}}
    with pytest.raises(RecipeError, match="`polish` trains the model of step `warm`"):
        run_recipe(recipe(data, steps=steps), data / "run", [])
    assert not (data / "run" / "metrics.jsonl").exists()
    run_recipe(recipe(data, steps={**steps, "polish": {"do": "train", "from": "base"}}), data / "apart", [])


def test_what_does_not_go_is_said(data):
    with pytest.raises(DataError, match="nothing in the column `kind_of_task`"):
        run_recipe(recipe(data, "train.tuner.types=kind_of_task"), data / "run", [])
    with pytest.raises(RecipeError, match="even number"):
        loramoe(experts=3)
    loramoe(experts=3, balance=0.0)
    with pytest.raises(RecipeError, match="name the column"):
        loramoe(delta=0.1)
    with pytest.raises(RecipeError, match="no linear layers called lost"):
        applied(tiny_model(), targets=["lost"])
    with pytest.raises(RecipeError, match="rows of this training do not have"):
        loramoe(**TYPED).plan(tiny_model(), TunerInputs(0, tiny_rows()))
    with pytest.raises(RecipeError, match="cannot be merged"):
        refuse_excluded([parts.build("tuner", "lora"), loramoe()])
    with pytest.raises(RecipeError, match="depends on the input"):
        tuner, model = applied(tiny_model())
        tuner.merge(model)
