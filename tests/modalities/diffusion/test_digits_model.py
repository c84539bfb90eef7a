"""Digits of 8×8 pixels through flow, then diffusion_nft, judged by a classifier trained on the same digits."""

import numpy
import pytest
import torch

from luthier import parts
from luthier.conformance.tiny import latent_rows, seeded
from luthier.diffusion._networks import FlowMLP
from luthier.diffusion.levels import solver_levels
from luthier.diffusion.policy import DenoiserPolicy
from luthier.diffusion.solvers import dpm2
from luthier.engine.assemble import Parts, tuned_policy
from luthier.engine.budget import Budget
from luthier.engine.source import Records
from luthier.engine.trainer import Batching, Trainer
from luthier.modalities.diffusion.rollout import DenoisedRollout, Sampled
from luthier.objectives.diffusion.diffusion_nft import DiffusionNFT
from luthier.objectives.diffusion.flow import Flow
from luthier.rewards._digits import classifier
from luthier.tuners.base import TunerInputs
from luthier.tuners.full import Full
from luthier.vision.digits import digit_rows


def stacked(rows):
    images = torch.tensor(numpy.stack([row.streams["image"].values for row in rows]))
    return images, torch.tensor([int(row.streams["label"].values) for row in rows])


def trained(module, objective, lr, source_of, observe=lambda event: None):
    adamw, constant = parts.build("optimizer", {"kind": "adamw", "lr": lr}), parts.build("schedule", "constant")
    chosen = Parts(objective, (Full(),), adamw, constant)
    policy = tuned_policy(module, chosen, TunerInputs(), make=DenoiserPolicy)
    Trainer(policy, chosen, source_of(policy), Batching(128, 4096), observe=observe).train()
    return policy


@pytest.mark.slow
def test_digits_are_drawn_and_rewarded():
    judge, other = classifier(0), classifier(1)
    images, labels = stacked(digit_rows(500, 1))
    assert min(float((one(images).argmax(1) == labels).double().mean()) for one in (judge, other)) > 0.97

    def reward(samples, told):
        return judge(samples).softmax(1).gather(1, told["label"][:, None])[:, 0]

    def seen(policy):
        """Reward, and the share that a classifier which gave no reward reads as the label asked for."""
        told = {"label": torch.arange(400) % 10}
        noise = torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            samples = dpm2(lambda x, level: policy.velocity(x, level, told), noise, solver_levels(10))
        right = (other(samples).argmax(1) == told["label"]).double().mean()
        return float(reward(samples, told).mean()), float(right)

    module = seeded(lambda: FlowMLP(64, 128, 3, 10), torch.float32, 0)
    rows = latent_rows(digit_rows(3000))
    policy = trained(module, Flow(), 2e-3, lambda _: Records(rows, 0, Budget("updates", 700)))
    base, events = seen(policy), []
    prompts = [{"label": numpy.int64(label)} for label in range(10)]
    how = Sampled((1, 8, 8), groups=10, size=16, solver="dpm2", steps=8, updates=4)
    made = lambda policy: DenoisedRollout(policy, prompts, reward, how, 0, Budget("updates", 60))  # noqa: E731
    policy = trained(module, DiffusionNFT(), 3e-4, made, events.append)
    after = seen(policy)
    print(base, after, events[-1]["kl"])
    assert base[0] > 0.7 and base[1] > 0.7  # the flow draws what it is asked for
    assert after[0] > base[0] + 0.05 and after[1] > base[1]  # and is not only better for its own judge
