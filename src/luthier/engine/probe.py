"""Probes: measurements of the model every k updates of a training, which change nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor, nn

from luthier.engine.budget import Position
from luthier.engine.distributed import World
from luthier.engine.score import score
from luthier.errors import RunError
from luthier.models.policy import Policy, reading
from luthier.types import Row


class Probe(Protocol):
    """Measures the model before the first update and after every `every`-th; its state is in the checkpoint."""

    every: int

    def measure(self, policy: Any, update: int, world: World) -> Sequence[Row]:
        """Measure the model, in eval mode and without gradient; returns the rows that were read, which are cost."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


def run_probes(probes: Sequence[Probe], policy: Policy, position: Position, world: World) -> None:
    """Let the probes measure that are due at this position, and count the rows that they read.

    Raises:
        RunError: a probe has changed a weight.
    """
    for probe in probes:
        if position.updates % probe.every == 0:
            with assert_unchanged(policy.module):
                rows = probe.measure(policy, position.updates, world)
            position.looked_rows += len(rows)
            position.looked_tokens += sum(len(row) for row in rows)


@contextmanager
def assert_unchanged(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradient; afterwards every random generator has its old state.

    Raises:
        RunError: a weight was written to.
    """
    # Versions count writes in place, and comparing them needs no copy of the weights.
    before = [parameter._version for parameter in module.parameters()]
    python, numbers = random.getstate(), numpy.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), reading(module):
        yield
    random.setstate(python)
    numpy.random.set_state(numbers)
    if before != [parameter._version for parameter in module.parameters()]:
        raise RunError("A probe changed the model; probes may only read it.")


@dataclass
class LossCurves:
    """The mean loss per target of every row at several updates of a training: column `trajectory` of s2l.

    Losses are of each row alone, in eval mode, independent of the training batches. Each measurement takes
    8 · len(rows) bytes.
    """

    rows: Sequence[Row]
    every: int
    tokens: int = 4096
    updates: list[int] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)  # one per measurement, [n] float64

    def measure(self, policy: Any, update: int, world: World) -> Sequence[Row]:
        share = score(policy, world.share(list(self.rows)), ["logprobs"], self.tokens)["logprobs"]
        column: dict[str, numpy.ndarray] = {}
        for rank_share in world.gather(share):
            column |= rank_share
        means = [-float(column[row.id].sum(dtype=numpy.float64)) / max(1, row.targets) for row in self.rows]
        self.updates.append(update)
        self.losses.append(torch.tensor(means, dtype=torch.float64))
        return self.rows

    def column(self) -> dict[str, numpy.ndarray]:
        """Row id → its losses [T], in the order of the updates."""
        table = torch.stack(self.losses, dim=1).numpy()
        return {row.id: values for row, values in zip(self.rows, table, strict=True)}

    def state_dict(self) -> dict[str, Tensor]:
        if not self.losses:
            return {}
        return {"updates": torch.tensor(self.updates), "losses": torch.stack(self.losses)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.updates = state["updates"].tolist() if state else []
        self.losses = list(state["losses"].clone()) if state else []
