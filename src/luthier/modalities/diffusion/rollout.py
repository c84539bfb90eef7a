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
from luthier.modalities.rollout import RolloutSource
from luthier.types import Row, Stream

OPTIMALITY = "optimality"
"""The row stream that only samples of a rollout carry: an objective that reads it needs a rollout."""
Condition = Mapping[str, numpy.ndarray]
Reward = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
"""(samples [R,...], their conditions) → rewards [R]."""


@dataclass(frozen=True)
class Sampled:
    """How a rollout is drawn and used.

    Attributes:
        shape: of one sample.
        groups, size: prompts per rollout, and samples of each prompt.
        solver, steps: what draws a sample, in how many steps.
        level_share: share of the solver's levels that is trained on.
        updates: that a rollout is cut into.
        decay: kind of the schedule by which `old` follows (`return_decay`).
        adv_clip, adv_mode: of `optimality`.
        min_std, max_mean: of the group filter; without `min_std` every group is kept and no prompt is ever banned.
        forward: samples per forward.
        shift: how far the solver's levels lie towards the noise.
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


class DenoisedRollout(RolloutSource):
    """Rows (sample, level) of a policy's own samples; a budget of updates.

    Every draw is keyed by (seed, rollout, prompt, sample), and `old` rests while a rollout is used, so a resumed
    run samples the rollout in force again and goes on with the same rows.

    Raises:
        RunError: the budget is not one of updates, or every prompt is solved.
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
        super().__init__(prompts, seed, budget)
        self.policy, self.reward, self.how = policy, reward, how
        self.synced = 0  # the rollout for which `old` last moved
        self.banned: dict[int, int] = {}  # prompt → the rollout that solved it
        self._rollout: tuple[int, list[Row], dict[str, float]] | None = None

    def draw(self, position: Position, records: int) -> Drawn | None:
        """An equal share of the rollout's rows. `records` has no effect: `groups` x `size` decide a rollout's size."""
        if position.updates >= self.budget.amount:
            return None
        index, part = divmod(position.updates, self.how.updates)
        if index > self.synced:
            # Before the new rollout is sampled, since it comes from `old`. The authors' code counts optimiser steps.
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

    def _prompt_indices(self, rollout: int) -> list[int]:
        """Prompts of a rollout, in the data order of those not yet solved; each comes again when all have come."""
        # A prompt that this very rollout solved stays in: a resumed run must draw it again.
        left = [prompt for prompt in range(len(self.prompts)) if self.banned.get(prompt, rollout) >= rollout]
        if not left:
            raise RunError("Every prompt is solved: there is nothing left to sample.", "Raise max_mean, or stop here.")
        first = rollout * self.how.groups
        indices = []
        for position in range(first, first + self.how.groups):
            epoch, offset = divmod(position, len(left))
            indices.append(left[data_order([str(prompt) for prompt in left], self.seed, epoch)[offset]])
        return indices

    def _sample(self, rollout: int) -> tuple[list[Row], dict[str, float]]:
        """The rows of a rollout and its numbers; prompts that it solved are banned from the next."""
        how, prompts = self.how, self._prompt_indices(rollout)
        device = next(self.policy.module.parameters()).device
        condition = self._conditions(prompts, device)
        noise = torch.from_numpy(self._noise(rollout, len(prompts))).float().to(device)
        with self.policy.sets["old"].using():
            clean = self.solve(noise, condition)
            rewards = self.reward(clean, condition).double().cpu().numpy().reshape(len(prompts), how.size)

        kept = numpy.ones(len(prompts), dtype=bool)
        if how.min_std is not None:
            kept, solved = group_filter(rewards, how.min_std, how.max_mean)
            for group in numpy.flatnonzero(solved):
                self.banned.setdefault(prompts[group], rollout)
        optimal = optimality(advantages(rewards), how.adv_clip, how.adv_mode)
        rows = self._rows(rollout, prompts, kept, clean.cpu().numpy(), optimal)
        return rows, {
            "reward": float(rewards.mean()),
            "groups_kept": float(kept.mean()),
            "banned": float(len(self.banned)),
        }

    def _conditions(self, prompts: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """Name → [groups * size, ...]: the condition of each prompt, once for each of its samples."""
        conditions = {}
        for name in self.prompts[0]:
            of_groups = numpy.stack([self.prompts[prompt][name] for prompt in prompts])
            conditions[name] = torch.from_numpy(numpy.repeat(of_groups, self.how.size, axis=0)).to(device)
        return conditions

    def _noise(self, rollout: int, groups: int) -> numpy.ndarray:
        """Noise [groups * size, *shape]; a key for each sample, so that none depends on how many there are."""
        drawn = []
        for group in range(groups):
            for sample in range(self.how.size):
                drawn.append(self._generator(rollout, group, sample).standard_normal(self.how.shape))
        return numpy.stack(drawn)

    def solve(self, noise: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Samples [R,...] from noise [R,...] under the parameters in force, `forward` at a time."""
        levels = solver_levels(self.how.steps, self.how.shift)
        solver = SOLVERS[self.how.solver]
        pieces = []
        for start in range(0, len(noise), self.how.forward):
            chunk = slice(start, start + self.how.forward)
            of_chunk = {name: values[chunk] for name, values in condition.items()}
            velocity = lambda x, level, of_chunk=of_chunk: self.policy.velocity(x, level, of_chunk)  # noqa: E731
            pieces.append(solver(velocity, noise[chunk], levels))
        return torch.cat(pieces)

    def _rows(
        self,
        rollout: int,
        prompts: Sequence[int],
        kept: numpy.ndarray,
        clean: numpy.ndarray,
        optimal: numpy.ndarray,
    ) -> list[Row]:
        """One row for each sample of a kept group and each of its levels, in an order keyed by the rollout.

        Args:
            kept: which groups are trained on, bool [groups].
            clean: the samples, [groups * size, *shape].
            optimal: probability of being optimal, [groups, size].
        """
        levels = numpy.array(solver_levels(self.how.steps, self.how.shift)[:-1], dtype=numpy.float32)
        trained = max(1, int(len(levels) * self.how.level_share))
        rows = []
        for group in numpy.flatnonzero(kept).tolist():
            condition = {PREFIX + name: Stream(array, "row") for name, array in self.prompts[prompts[group]].items()}
            for sample in range(self.how.size):
                latent = Stream(clean[group * self.how.size + sample], "row")
                judged = {"latent": latent, OPTIMALITY: Stream(float(optimal[group, sample]), "row")}
                for level in self._generator(rollout, group, sample, 1).permutation(len(levels))[:trained]:
                    streams = judged | condition | {"level": Stream(levels[level], "row")}
                    name = f"rollout-{rollout}/{group}/{sample}/{level}"
                    rows.append(Row(name, numpy.zeros(0, dtype=numpy.int32), streams))
        return self.shuffled(rows, rollout)

    def _generator(self, *key: int) -> numpy.random.Generator:
        return numpy.random.default_rng([self.seed, *key])
