"""Probes: guests of a training that look at the model every k updates and change nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor, nn

from luthier.engine.distributed import World
from luthier.engine.score import score
from luthier.errors import RunError
from luthier.models.policy import reading
from luthier.types import Row


class Probe(Protocol):
    """Looks at the model before the first update and after every `every`-th; its state is in the checkpoint."""

    every: int

    def look(self, policy: Any, update: int, world: World) -> Sequence[Row]:
        """Read the model, which is in eval mode and without gradient; returns the rows that were looked at."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


@contextmanager
def assert_unchanged(module: nn.Module) -> Iterator[None]:
    """Eval mode, no gradient, and every random generator as it was afterwards.

    Raises:
        RunError: a weight was written to.
    """
    before = [parameter._version for parameter in module.parameters()]
    python, numbers = random.getstate(), numpy.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), reading(module):
        yield
    random.setstate(python)
    numpy.random.set_state(numbers)
    if before != [parameter._version for parameter in module.parameters()]:
        raise RunError("A probe changed the model; probes may only look.")


@dataclass
class LossCurves:
    """The mean loss per target of every row, again and again while a model learns: column `trajectory` of s2l.

    Losses are of each row alone, in eval mode, whatever the training batch held. `points` losses take
    8 · len(rows) bytes each.
    """

    rows: Sequence[Row]
    every: int
    tokens: int = 4096
    updates: list[int] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)  # of each moment, [n] float64

    def look(self, policy: Any, update: int, world: World) -> Sequence[Row]:
        found = score(policy, world.share(list(self.rows)), ["logprobs"], self.tokens)["logprobs"]
        column = {name: values for theirs in world.gather(found) for name, values in theirs.items()}
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
