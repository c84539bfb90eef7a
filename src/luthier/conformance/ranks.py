"""Ranks that are threads of one process, for the conformance matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Barrier
from typing import Any

from torch import Tensor

from luthier.engine.distributed import World


class Meeting:
    """Where threads exchange what processes would."""

    def __init__(self, size: int):
        self.barrier = Barrier(size, timeout=120)
        self.brought: list[Any] = [None] * size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.brought[rank] = value
        self.barrier.wait()
        everything = list(self.brought)
        self.barrier.wait()
        return everything

    def attend(self, work: Callable[[], Any]) -> None:
        """Work; if it breaks off, the other does not wait for ever."""
        try:
            work()
        except BaseException:
            self.barrier.abort()
            raise


@dataclass(frozen=True)
class Peer(World):
    """One of several ranks that live in one process."""

    meeting: Any = None

    def sum_numbers(self, numbers: dict[str, float]) -> dict[str, float]:
        everyone = self.meeting.exchange(self.rank, dict(numbers))
        names = dict.fromkeys(name for theirs in everyone for name in theirs)
        return {name: sum(theirs.get(name, 0.0) for theirs in everyone) for name in names}

    def sum_tensors(self, tensors: Iterable[Tensor]) -> None:
        mine = list(tensors)
        everyone = self.meeting.exchange(self.rank, [tensor.detach().clone() for tensor in mine])
        for tensor, *all_of_it in zip(mine, *everyone, strict=True):
            tensor.copy_(sum(all_of_it))

    def gather(self, item: Any) -> list[Any]:
        return self.meeting.exchange(self.rank, item)

    def barrier(self) -> None:
        self.meeting.exchange(self.rank, None)
