"""A rollout of denoisers as a source of rows: samples of the set `old`, judged in groups, trained on for a while."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy
import torch
from torch import Tensor

from luthier.data.batches import data_order
from luthier.diffusion.levels import solver_levels
from luthier.diffusion.optimality import Mode, advantages, group_filter, optimality, return_decay
from luthier.diffusion.policy import PREFIX, DenoiserPolicy
from luthier.diffusion.solvers import SOLVERS
from luthier.engine.budget import Budget, Position
from luthier.engine.source import Drawn
from luthier.errors import RunError
from luthier.types import Row, Stream

DRAWN = "optimality"
"""The row stream that only samples of a rollout carry: an objective that reads it is given a rollout."""
Condition = Mapping[str, numpy.ndarray]
Reward = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
"""(samples [R,...], their conditions) → rewards [R]."""


@dataclass(frozen=True)
class Sampled:
    """How a rollout is drawn and used.

    `shape` of a sample; `groups` prompts of `size` samples each; a solver in `steps` steps, of whose levels the
    share `level_share` is trained on; `updates` per rollout; `decay` kind of `old`; `min_std` and `max_mean` of
    the group filter (None: every group is kept, no prompt is ever banned); `forward`: samples per forward; `shift`:
    how far the solver's levels lie towards the noise.
    """

    shape: tuple[int, ...]
    groups: int = 8
    size: int = 24
    solver: Literal["euler", "dpm2"] = "dpm2"
    steps: int = 10
    level_share: float = 0.99
    updates: int = 1
    decay: Literal[0, 1, 2] = 1
    adv_clip: float = 5.0
    adv_mode: Mode = "all"
    min_std: float | None = None
    max_mean: float = 0.9
    forward: int = 256
    shift: float = 1.0


class DenoisedRollout:
    """Rows (sample, level) of a policy's own samples; a budget of updates.

    Every draw is keyed by (seed, rollout, prompt, sample), and `old` rests while a rollout is used, so a resumed
    run samples the rollout in force again and goes on with the same rows.
    """

    def __init__(
        self,
        policy: DenoiserPolicy,
        prompts: Sequence[Condition],
        reward: Reward,
        how: Sampled,
        seed: int,
        budget: Budget,
    ):
        if budget.unit != "updates":
            raise RunError(f"A rollout of a denoiser has a budget of updates, not of {budget.unit}.")
        self.policy, self.prompts, self.reward, self.how = policy, list(prompts), reward, how
        self.seed, self.budget = seed, budget
        self.synced = 0  # the rollout for which `old` last moved
        self.banned: dict[int, int] = {}  # prompt → the rollout that solved it
        self._rollout: tuple[int, list[Row], dict[str, float]] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def draw(self, position: Position, records: int) -> Drawn | None:
        """An equal share of the rollout's rows; `records` is not asked for, a rollout has the size that it has."""
        if position.updates >= self.budget.amount:
            return None
        index, part = divmod(position.updates, self.how.updates)
        if index > self.synced:
            updates = index * self.how.updates
            self.policy.sets["old"].follow(return_decay(updates, self.how.decay))
            self.synced = index
        if self._rollout is None or self._rollout[0] != index:
            self._rollout = (index, *self._sample(index))
        _, rows, facts = self._rollout
        return Drawn(rows[part :: self.how.updates], self.how.groups if part == 0 else 0, facts)

    def updates_left(self, position: Position, records: int) -> int | None:
        return max(0, int(self.budget.amount) - position.updates)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"synced": self.synced, "banned": list(self.banned.items())}

    def load(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.synced, self.banned = meta["synced"], dict(meta["banned"])

    def _chosen(self, index: int) -> list[int]:
        """Prompts of a rollout, from the data order of those that are left; each comes again when all have come."""
        left = [prompt for prompt in range(len(self.prompts)) if self.banned.get(prompt, index) >= index]
        if not left:
            raise RunError("Every prompt is solved: there is nothing left to sample.", "Raise max_mean, or stop here.")
        first = index * self.how.groups
        chosen = []
        for place in range(first, first + self.how.groups):
            epoch, offset = divmod(place, len(left))
            chosen.append(left[data_order([str(prompt) for prompt in left], self.seed, epoch)[offset]])
        return chosen

    def _sample(self, index: int) -> tuple[list[Row], dict[str, float]]:
        """The rows of a rollout and its numbers; prompts that it solved are banned from the next."""
        how, chosen = self.how, self._chosen(index)
        told = {
            name: torch.from_numpy(numpy.stack([self.prompts[p][name] for p in chosen for _ in range(how.size)]))
            for name in self.prompts[0]
        }
        noise = numpy.stack(
            [self._keyed(index, g, k).standard_normal(how.shape) for g in range(len(chosen)) for k in range(how.size)]
        )
        device = next(self.policy.module.parameters()).device
        told = {name: values.to(device) for name, values in told.items()}
        with self.policy.sets["old"].using():
            clean = self.solve(torch.from_numpy(noise).float().to(device), told)
            rewards = self.reward(clean, told).double().cpu().numpy().reshape(len(chosen), how.size)
        kept = numpy.ones(len(chosen), dtype=bool)
        if how.min_std is not None:
            kept, solved = group_filter(rewards, how.min_std, how.max_mean)
            for g in numpy.flatnonzero(solved):
                self.banned.setdefault(chosen[g], index)
        r = optimality(advantages(rewards), how.adv_clip, how.adv_mode)
        rows = self._rows(index, chosen, kept, clean.cpu().numpy(), r)
        return rows, {
            "reward": float(rewards.mean()),
            "groups_kept": float(kept.mean()),
            "banned": float(len(self.banned)),
        }

    def solve(self, noise: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        """Samples from noise under the parameters in force, `forward` at a time."""
        levels = solver_levels(self.how.steps, self.how.shift)
        pieces = []
        for start in range(0, len(noise), self.how.forward):
            cut = slice(start, start + self.how.forward)
            condition = {name: values[cut] for name, values in told.items()}
            velocity = lambda x, level, condition=condition: self.policy.velocity(x, level, condition)  # noqa: E731
            pieces.append(SOLVERS[self.how.solver](velocity, noise[cut], levels))
        return torch.cat(pieces)

    def _rows(
        self, index: int, chosen: Sequence[int], kept: numpy.ndarray, clean: numpy.ndarray, r: numpy.ndarray
    ) -> list[Row]:
        """One row for each sample of a kept group and each of its levels, in an order keyed by the rollout."""
        levels = numpy.array(solver_levels(self.how.steps, self.how.shift)[:-1], dtype=numpy.float32)
        trained = max(1, int(len(levels) * self.how.level_share))
        rows = []
        for g, k in ((int(g), k) for g in numpy.flatnonzero(kept) for k in range(self.how.size)):
            told = {PREFIX + name: Stream(values, "row") for name, values in self.prompts[chosen[g]].items()}
            own = {"latent": Stream(clean[g * self.how.size + k], "row"), DRAWN: Stream(float(r[g, k]), "row")}
            for j in self._keyed(index, g, k, 1).permutation(len(levels))[:trained]:
                name = f"rollout-{index}/{g}/{k}/{j}"
                streams = own | told | {"level": Stream(levels[j], "row")}
                rows.append(Row(name, numpy.zeros(0, dtype=numpy.int32), streams))
        order = data_order([row.id for row in rows], self.seed, index)
        return [rows[place] for place in order]

    def _keyed(self, *key: int) -> numpy.random.Generator:
        return numpy.random.default_rng([self.seed, *(int(one) for one in key)])
