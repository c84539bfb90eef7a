"""ppo: the surrogate is grpo's, the value head learns returns and lives in checkpoints, scores and artefacts."""

import numpy
import pytest
import torch

from luthier import parts
from luthier.conformance.base import apart
from luthier.conformance.tiny import tiny_rows, with_streams
from luthier.conformance.training import GradientDescent, trained, trainer
from luthier.engine.budget import Budget
from luthier.engine.score import score
from luthier.engine.trainer import Batching, Saving
from luthier.errors import RecipeError
from luthier.objectives.policy_gradient._value import ValueHead
from luthier.objectives.sum import WeightedSum
from luthier.types import Stream

WHOLE = Batching(8, 10_000)
HEAD = ("companion/values/weight", "companion/values/bias")


def ppo(**options):
    return parts.build("objective", {"kind": "ppo", **options})


def full():
    return parts.build("tuner", "full")


def rows():
    return with_streams(tiny_rows(), ppo().reads)


def model_part(change):
    return {name: values for name, values in change.items() if name not in HEAD}


def test_the_surrogate_is_grpos():
    clipped = {"clip_low": 0.3, "clip_high": 0.1}
    alone = trained(ppo(value_coefficient=0.0, **clipped), full(), WHOLE, rows=rows())
    grpo = trained(parts.build("objective", {"kind": "grpo", **clipped}), full(), WHOLE, rows=rows())
    assert apart(grpo, model_part(alone)) < 1e-9 and all(float(alone[name].abs().max()) == 0 for name in HEAD)


def test_the_value_loss_is_that_of_the_formula():
    made, objective = rows(), ppo(value_coefficient=0.5, value_reaches_model=False, value_rate=1.0)
    run = trainer(objective, full(), made, WHOLE, optimizer=GradientDescent())
    head, loss, targets = run.policy.companions["values"].module, 0.0, 0
    values = score(run.policy, made, ["values"], 10_000)["values"]
    for row in made:
        for t in range(1, len(row)):
            weight = float(row.streams["weights"].values[t])
            if weight:
                v, old, back = (
                    float(x) for x in (values[row.id][t], *(row.streams[n].values[t] for n in ("values", "returns")))
                )
                near = min(max(v, old - 0.2), old + 0.2)
                pushed = 1.0 if (v - back) ** 2 >= (near - back) ** 2 else 0.0
                loss, targets = loss + 0.5 * weight * pushed * (v - back), targets + 1
    before = head.bias.detach().clone()
    run.train()
    assert float(before - head.bias.detach()) == pytest.approx(loss / targets, rel=1e-6)


def test_a_score_pass_gives_the_values_of_the_states_before_each_token():
    run = trainer(ppo(), full(), rows(), WHOLE)
    head = run.policy.companions["values"].module
    found = score(run.policy, rows(), ["logprobs", "values"], 60)
    row = rows()[3]
    with torch.no_grad():
        states = run.policy.module.model(input_ids=torch.from_numpy(row.ids).long()[None]).last_hidden_state[0]
    targets = [t for t in range(1, len(row)) if row.streams["weights"].values[t]]
    wanted = [float(head(states[t - 1 : t]).detach()) for t in targets]
    assert found["values"][row.id][targets].tolist() == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(RecipeError, match=r"Known: .*values"):
        score(run.policy, rows(), ["vaules"], 60)


def test_values_are_nothing_before_training():
    head = ValueHead(4, torch.zeros(1, dtype=torch.bfloat16))
    assert head.weight.dtype == torch.float32 and head(torch.ones(3, 4, dtype=torch.bfloat16)).tolist() == [0, 0, 0]


def test_the_head_has_its_own_rate_and_the_model_may_be_left_alone():
    one, ten = (trained(ppo(value_rate=rate), full(), WHOLE, rows=rows()) for rate in (1.0, 10.0))
    assert apart(model_part(one), model_part(ten)) == 0.0
    assert torch.allclose(10 * one[HEAD[0]], ten[HEAD[0]])
    without = trained(ppo(value_reaches_model=False), full(), WHOLE, rows=rows())
    surrogate = trained(ppo(value_coefficient=0.0), full(), WHOLE, rows=rows())
    assert apart(model_part(surrogate), model_part(without)) < 1e-12
    assert apart(model_part(ten), model_part(without)) > 1e-3


def test_the_head_is_clipped_apart():
    free = trained(ppo(value_coefficient=1e4, value_reaches_model=False), full(), WHOLE, rows=rows())
    tight = GradientDescent(clip=1e-3)
    both = trained(ppo(value_coefficient=1e4, value_reaches_model=False), full(), WHOLE, rows=rows(), optimizer=tight)
    alone = trained(ppo(value_coefficient=0.0), full(), WHOLE, rows=rows(), optimizer=tight)
    assert apart(model_part(alone), model_part(both)) < 1e-9
    norm = torch.sqrt(sum(both[name].square().sum() for name in HEAD))
    assert float(norm) == pytest.approx(10.0 * 1e-3, rel=1e-4) and float(free[HEAD[0]].norm()) > 1.0


def test_a_resumed_run_has_the_same_head(tmp_path):
    def run(stop, saving=True):
        made = trainer(
            ppo(),
            full(),
            rows(),
            Batching(3, 40),
            budget=Budget("updates", 4),
            optimizer=parts.build("optimizer", {"kind": "adamw", "lr": 1e-3}),
            saving=Saving(tmp_path) if saving else None,
            stop_requested=stop,
        )
        made.resume()
        made.train()
        return made.masters.master

    calls = iter((False, True))
    run(lambda: next(calls))
    resumed, whole = run(lambda: False), run(lambda: False, saving=False)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole) and set(HEAD) < whole.keys()


def test_the_model_does_not_hold_the_head(tmp_path):
    from luthier.engine.checkpoints import save_companions

    run = trainer(ppo(), full(), rows(), WHOLE)
    run.train()
    assert not any(name in run.masters.of_model() for name in HEAD)
    save_companions(run.policy.companions, tmp_path / "companions")
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "companions" / "values.safetensors")
    assert torch.equal(saved["weight"], run.policy.companions["values"].module.weight.detach())


def test_a_sum_shares_the_pass_and_keeps_the_value_loss(monkeypatch):
    from luthier.models.policy import TokenPolicy

    passes, hidden = [], TokenPolicy.hidden
    monkeypatch.setattr(TokenPolicy, "hidden", lambda self, batch: passes.append(1) or hidden(self, batch))
    both = trained(
        WeightedSum(members=((ppo(), 2.0), (parts.build("objective", "sft"), 0.5))), full(), WHOLE, rows=rows()
    )
    assert len(passes) == 1
    one = trained(ppo(), full(), WHOLE, rows=rows())
    two = trained(parts.build("objective", "sft"), full(), WHOLE, rows=rows())
    assert apart({name: 2 * one[name] + 0.5 * two.get(name, 0) for name in one}, both) < 1e-6
    with pytest.raises(RecipeError, match="companion module called `values`"):
        trained(WeightedSum(members=((ppo(), 1.0), (ppo(), 1.0))), full(), WHOLE, rows=rows())


def test_the_head_comes_to_explain_the_returns():
    """Returns that depend on the token: 1 after an even one, else 0."""
    made = []
    for row in rows():
        returns = numpy.r_[0.0, (row.ids[:-1] % 2 == 0)].astype("float32")
        advantages = Stream(returns * 0, "token")
        made.append(
            type(row)(row.id, row.ids, {**row.streams, "returns": Stream(returns, "token"), "advantages": advantages})
        )
    events = []
    adamw = parts.build("optimizer", {"kind": "adamw", "lr": 3e-3})
    budget = Budget("updates", 40)
    trained(
        ppo(value_coefficient=1.0, value_clip=None),
        full(),
        WHOLE,
        rows=made,
        observe=events.append,
        optimizer=adamw,
        budget=budget,
    )
    variance = numpy.concatenate(
        [row.streams["returns"].values[1:][row.streams["weights"].values[1:] != 0] for row in made]
    ).var()
    assert 1 - events[-1]["value_error"] / variance > 0.8
