"""Several processes as one: ranks share an update's micro-batches and sum their gradients once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET = 2**23
"""Elements reduced in one message (32 MiB in fp32): enough to hide latency, little compared with the model."""


@dataclass(frozen=True)
class World:
    """This process among its peers. One process is a world of size 1, with the same code path."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> World:
        """The world that torchrun set up (RANK, WORLD_SIZE), or a world of one."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    def share(self, items: list) -> list:
        """This rank's items: every size-th, so that items sorted by length are spread evenly."""
        return items[self.rank :: self.size]

    def sum_numbers(self, numbers: dict[str, float]) -> dict[str, float]:
        """Sum named numbers over ranks in one message; a rank may lack some names."""
        if self.size == 1:
            return numbers
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, numbers)
        names = dict.fromkeys(name for theirs in everyone for name in theirs)
        return {name: sum(theirs.get(name, 0.0) for theirs in everyone) for name in names}

    def gather(self, own: Any, /) -> list[Any]:
        """The objects of all ranks, in the order of ranks; their tensors must be on the processor."""
        if self.size == 1:
            return [own]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, own)
        return everyone

    def sum_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Sum tensors over ranks in place, in buckets of one type."""
        if self.size == 1:
            return
        waiting: list[Tensor] = []
        for tensor in tensors:
            # One type per message: concatenating mixed types would convert the narrower ones.
            if waiting and (waiting[0].dtype != tensor.dtype or sum(t.numel() for t in waiting) > BUCKET):
                _reduce(waiting)
                waiting = []
            waiting.append(tensor)
        if waiting:
            _reduce(waiting)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def _reduce(tensors: list[Tensor]) -> None:
    # One message for many small tensors: each message costs a round trip.
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, piece in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(piece.view_as(tensor))
