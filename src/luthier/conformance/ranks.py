"""Ranks that are threads of one process: two of them cost no start of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Barrier
from typing import Any

from torch import Tensor

from luthier.engine.distributed import World


class Meeting:
    """The exchange between the threads: what collective operations are between processes."""

    def __init__(self, size: int):
        self.barrier = Barrier(size, timeout=120)
        self.slots: list[Any] = [None] * size

    def exchange(self, rank: int, contribution: Any) -> list[Any]:
        """The contributions of all ranks, by rank."""
        self.slots[rank] = contribution
        self.barrier.wait()
        contributions = list(self.slots)
        self.barrier.wait()  # nobody writes the next contribution before all have read this one
        return contributions

    def attend(self, work: Callable[[], Any]) -> None:
        """Do a rank's work; if it raises, the other rank's wait ends with an error too."""
        try:
            work()
        except BaseException:
            self.barrier.abort()
            raise


@dataclass(frozen=True)
class Peer(World):
    """One of several ranks that live in one process. Every operation waits until all ranks have called it."""

    meeting: Any = None

    def sum_numbers(self, numbers: dict[str, float]) -> dict[str, float]:
        everyone = self.meeting.exchange(self.rank, dict(numbers))
        names = dict.fromkeys(name for of_rank in everyone for name in of_rank)
        return {name: sum(of_rank.get(name, 0.0) for of_rank in everyone) for name in names}

    def sum_tensors(self, tensors: Iterable[Tensor]) -> None:
        own = list(tensors)
        everyone = self.meeting.exchange(self.rank, [tensor.detach().clone() for tensor in own])
        for tensor, *of_ranks in zip(own, *everyone, strict=True):
            tensor.copy_(sum(of_ranks))

    def gather(self, item: Any) -> list[Any]:
        return self.meeting.exchange(self.rank, item)

    def barrier(self) -> None:
        self.meeting.exchange(self.rank, None)
