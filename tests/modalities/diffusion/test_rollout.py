"""A denoiser's rollouts: the ring of eight modes from the card, the group filter, exact resume."""

import functools
import math
from dataclasses import replace

import numpy
import pytest
import torch

from luthier import parts
from luthier.conformance.tiny import seeded
from luthier.diffusion._networks import FlowMLP
from luthier.diffusion.policy import DenoiserPolicy
from luthier.engine.assemble import Parts, tuned_policy
from luthier.engine.budget import Budget
from luthier.engine.source import Records
from luthier.engine.trainer import Batching, Saving, Trainer
from luthier.modalities.diffusion import rollout as denoise
from luthier.modalities.diffusion.rollout import DenoisedRollout, Sampled
from luthier.objectives.diffusion import _nft, diffusion_nft
from luthier.objectives.diffusion.diffusion_nft import DiffusionNFT
from luthier.objectives.diffusion.flow import Flow
from luthier.tuners.base import TunerInputs
from luthier.tuners.full import Full
from luthier.types import Row, Stream

MODES = torch.tensor([[math.cos(a), math.sin(a)] for a in numpy.arange(8) * math.pi / 4]) * 3
_nft_practical = _nft.practical
NOTHING = numpy.zeros(0, dtype=numpy.int32)


def ring(count, seed):
    """Points near the eight modes, spread 0.25."""
    draw = numpy.random.default_rng(seed)
    points = MODES.numpy()[draw.integers(0, 8, count)] + 0.25 * draw.standard_normal((count, 2))
    return [Row(f"p{i}", NOTHING, {"latent": Stream(p.astype(numpy.float32), "row")}) for i, p in enumerate(points)]


def reward(points, condition):
    """1 at the first mode, falling off around it."""
    return (-(points - MODES[0]).square().sum(1) / 2).exp()


def trainer(module, objective, source, lr, saving=None, stop=lambda: False, observe=lambda event: None):
    adamw = parts.build("optimizer", {"kind": "adamw", "lr": lr})
    chosen = Parts(objective, (Full(),), adamw, parts.build("schedule", "constant"))
    policy = source.policy if source is not None else None
    policy = policy or tuned_policy(module, chosen, TunerInputs(), make=DenoiserPolicy)
    more = {"saving": saving, "stop_requested": stop, "observe": observe}
    return policy, lambda made: Trainer(policy, chosen, made, Batching(256, 4096), **more)


@functools.cache
def base(seed):
    """Weights of a flow of the ring."""
    policy, make = trainer(seeded(lambda: FlowMLP(2), torch.float32, seed), Flow(), None, 5e-3)
    make(Records(ring(4096, seed), seed, Budget("updates", 500))).train()
    return {name: values.clone() for name, values in policy.module.state_dict().items()}


def tune(seed, epochs=40, how=None, objective=None, **more):
    """A source and trainer that start from the base; nft as on the card."""
    module = FlowMLP(2)
    module.load_state_dict(base(seed))
    objective = objective or DiffusionNFT()
    policy, make = trainer(module, objective, None, 3e-4, **more)
    how = how or Sampled((2,), groups=1, size=192, solver="euler", steps=10, updates=4)
    source = DenoisedRollout(policy, [{}], reward, how, seed, Budget("updates", epochs * how.updates))
    return make(source)


def judged(policy):
    """Mean reward, share in the first mode, and share near any mode, of 1000 samples of the trained parameters."""
    from luthier.diffusion.levels import solver_levels
    from luthier.diffusion.solvers import euler

    noise = torch.randn(1000, 2, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        points = euler(lambda x, level: policy.velocity(x, level, {}), noise, solver_levels(10))
    distance, nearest = torch.cdist(points, MODES).min(1)
    return (
        float(reward(points, {}).mean()),
        float((nearest == 0).float().mean()),
        float((distance < 0.6).float().mean()),
    )


def positives_only(monkeypatch):
    """The pull of good samples without the push of bad ones."""

    def practical(trained, old, x, clean, level, r, beta, clip):
        zero = torch.zeros_like(r)
        both, push = (_nft_practical(trained, old, x, clean, level, one, beta, clip) for one in (zero + 1, zero))
        return r * both + 0 * push

    monkeypatch.setattr(diffusion_nft.nft, "practical", practical)  # what the part holds: it may be a lazy handle


def undecided(monkeypatch):
    monkeypatch.setattr(denoise, "optimality", lambda advantage, clip, mode: numpy.full_like(advantage, 0.5))


def compared(seed, monkeypatch):
    """What each way of tuning ends with, and the base."""
    found = {}
    for name, change in (("nft", None), ("positives", positives_only), ("control", undecided)):
        with monkeypatch.context() as patch:
            if change is not None:
                change(patch)
            run = tune(seed)
            found.setdefault("base", judged(run.policy))
            run.train()
            found[name] = judged(run.policy)
    print({name: [round(value, 3) for value in values] for name, values in found.items()})
    return found


def check_the_ring(found):
    base_, nft, positives, control = (found[name] for name in ("base", "nft", "positives", "control"))
    assert base_[0] < 0.3 and nft[0] > 0.8 and nft[1] > 0.85
    assert positives[0] < nft[0] - 0.05 and positives[2] < nft[2]
    assert abs(control[0] - base_[0]) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_ring(seed, monkeypatch):
    check_the_ring(compared(seed, monkeypatch))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"beta": 0.1}, {"normalise": False, "beta": 0.5}])
def test_the_ring_with_other_options(options):
    run = tune(0, objective=DiffusionNFT(**options))
    run.train()
    assert judged(run.policy)[0] > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("solver, steps", [("euler", 4), ("dpm2", 6)])
def test_any_solver_may_have_drawn_the_samples(solver, steps):
    run = tune(0, how=Sampled((2,), groups=1, size=192, solver=solver, steps=steps, updates=4))
    run.train()
    assert judged(run.policy)[0] > 0.7


SMALL = Sampled((2,), groups=2, size=6, steps=4, updates=3, min_std=0.0, max_mean=2.0)


def small(seed=0, objective=None, how=SMALL, **more):
    policy, make = trainer(
        seeded(lambda: FlowMLP(2, 8, 2), torch.float32, 0), objective or DiffusionNFT(), None, 1e-2, **more
    )
    return make(DenoisedRollout(policy, [{}] * 5, reward, how, seed, Budget("updates", 8)))


@pytest.mark.parametrize("stops", [(4,), (3,), (2, 5)])
def test_resumed_within_or_between_rollouts_it_ends_in_the_same_bits(tmp_path, stops):
    whole = small()
    whole.train()
    for stop in stops:
        run = small(saving=Saving(tmp_path), stop=lambda: run.position.updates >= stop)  # noqa: B023
        run.resume()
        run.train()
        assert run.position.updates == stop
    again = small(saving=Saving(tmp_path))
    assert again.resume() and again.train() == "done" and again.position.updates == 8
    for name, master in whole.masters.master.items():
        assert torch.equal(master, again.masters.master[name])
    for name in ("old", "initial"):
        values = again.policy.sets[name].values
        assert all(torch.equal(value, values[key]) for key, value in whole.policy.sets[name].values.items())


def test_old_rests_during_a_rollout_and_then_follows():
    run = small()
    run.source._sample = watched = Watch(run.source._sample, run.policy)
    run.train()
    assert [index for index, _ in watched.seen] == [0, 1, 2]
    first, second, third = (old for _, old in watched.seen)
    assert not torch.equal(first, second) and not torch.equal(second, third)
    assert not torch.equal(run.policy.sets["initial"].values["last.bias"], third)
    assert torch.equal(run.policy.sets["initial"].values["last.bias"], first)


@pytest.mark.parametrize("updates", [1, 3])
def test_old_follows_by_the_number_of_updates_so_far(monkeypatch, updates):
    """As the released code, which hands its decay the steps of the optimiser, already counted up."""
    asked = []
    monkeypatch.setattr(denoise, "return_decay", lambda step, kind: asked.append((step, kind)) or 0.0)
    small(how=replace(SMALL, updates=updates)).train()
    assert asked == [(step, 1) for step in range(updates, 8, updates)]


class Watch:
    def __init__(self, sample, policy):
        self.sample, self.policy, self.seen = sample, policy, []

    def __call__(self, index):
        self.seen.append((index, self.policy.sets["old"].values["last.bias"].clone()))
        return self.sample(index)


def test_rows_are_every_sample_at_its_trained_levels():
    run = small()
    drawn = [run.source.draw(run.position, 1)]
    for updates in (1, 2):
        run.position.updates = updates
        drawn.append(run.source.draw(run.position, 1))
    rows = [row for one in drawn for row in one.rows]
    assert len(rows) == len({row.id for row in rows}) == 2 * 6 * 3  # of 4 levels int(4 · 0.99) = 3
    assert {float(row.streams["level"].values) for row in rows} == {1.0, 0.75, 0.5, 0.25}
    assert [one.records for one in drawn] == [2, 0, 0]


def test_solved_prompts_are_banned_and_dull_groups_dropped():
    def always(points, condition):
        return (
            torch.where(condition["kind"] == 0, 0.95, 0.5).to(points)
            + 0.1 * (condition["kind"] == 2) * points[:, 0].sign()
        )

    policy, make = trainer(seeded(lambda: Told(), torch.float32, 0), DiffusionNFT(), None, 1e-3)
    prompts = [{"kind": numpy.int64(kind)} for kind in (0, 1, 2)]
    how = Sampled((2,), groups=3, size=8, steps=3, min_std=0.05, max_mean=0.9)
    run = make(DenoisedRollout(policy, prompts, always, how, 0, Budget("updates", 2)))
    drawn = run.source.draw(run.position, 3)
    assert drawn.facts["groups_kept"] == pytest.approx(1 / 3) and run.source.banned == {0: 0}
    assert {int(row.streams["condition:kind"].values) for row in drawn.rows} == {2}
    run.position.updates = 1
    assert {0} & set(run.source._prompt_indices(1)) == set()
    assert 0 in run.source._prompt_indices(0)  # a rollout that is sampled again draws what it drew


class Told(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = FlowMLP(2, 8, 1)

    def forward(self, x, level, kind):
        return self.inner(x, level) + 0 * kind[:, None]
