"""Cuts the rows of an update into micro-batches, and into smaller ones where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch

from luthier.data.batches import Layout, collate, group_by_record, micro_batches, positions
from luthier.engine.distributed import World
from luthier.errors import RunError
from luthier.types import Batch, Row

Attempted = TypeVar("Attempted")


@dataclass(frozen=True)
class Batching:
    """`records` per update, `tokens` per forward (padding included), and the layout of rows in a batch."""

    records: int = 16
    tokens: int = 2048
    layout: Layout = "padded"
    side: Literal["right", "left"] = "right"
    pad_id: int = 0


class MicroBatches:
    """Cuts rows into this rank's micro-batches.

    Attributes:
        tokens: current positions per forward, in checkpoints.

    Args:
        clear: discards the gradients of an attempt that ran out of memory.
    """

    def __init__(self, batching: Batching, world: World, clear: Callable[[], None]):
        self.batching = batching
        self.tokens = batching.tokens
        self.world = world
        self._clear = clear

    def cut(self, rows: Sequence[Row], layout: Layout) -> list[list[Row]]:
        """This rank's share of the rows, micro-batch by micro-batch."""
        return self.world.share(micro_batches(rows, self.tokens, layout))

    def collate(self, micro: Sequence[Row], layout: Layout) -> Batch:
        """The batch of the rows of a micro-batch, on the CPU."""
        return collate(micro, layout, self.batching.pad_id, self.batching.side)

    def batches(self, rows: Sequence[Row]) -> list[Batch]:
        """This rank's share of the rows as the batches to train on."""
        layout = self.batching.layout
        return [self.collate(micro, layout) for micro in self.cut(rows, layout)]

    def within_memory(
        self,
        rows: Sequence[Row],
        update: int,
        attempt: Callable[[], Attempted],
        observe: Callable[[dict[str, Any]], None],
    ) -> Attempted:
        """The attempt's return value; when memory runs out, its gradients are discarded and the micro-batch halved.

        Args:
            observe: receives an event when micro-batches become smaller.

        Raises:
            RunError: memory runs out with a single record per forward, or on one of several ranks.
        """
        while True:
            try:
                return attempt()
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                self._clear()
                longest = max(positions(record, self.batching.layout) for record in group_by_record(rows))
                # One rank of several cannot cut smaller by itself: the others would wait for its sums forever.
                if self.world.size > 1 or self.tokens <= longest:
                    raise RunError(
                        f"Out of memory at update {update} with micro-batches of {self.tokens} tokens (longest record:"
                        f" {longest}).",
                        "Lower train.batch.micro or data.max_tokens, or set train.checkpointing=true.",
                    ) from error
            # Outside of `except`: the error is gone, and with it the tensors that its frames held.
            self.tokens = max(longest, self.tokens // 2)
            observe({"event": "micro", "tokens": self.tokens, "update": update})
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _out_of_memory(error: BaseException) -> bool:
    # On a processor torch raises a plain RuntimeError, known by its text only.
    text = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text
