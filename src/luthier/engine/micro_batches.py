"""Cuts the rows of an update into micro-batches, and into smaller ones where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from luthier.data.batches import Layout, collate, group_by_record, micro_batches, positions
from luthier.engine.distributed import World
from luthier.errors import RunError
from luthier.types import Batch, Row


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

    def expect_out_of_memory(self, error: BaseException, rows: Sequence[Row], update: int) -> None:
        """Discard the gradients of an attempt that ran out of memory; `halve` then prepares the next one.

        Call `halve` behind the `except` block: only there the error is gone, and with it the tensors that its frames
        hold.

        Raises:
            RunError: memory runs out with a single record per forward, or on one of several ranks.
            BaseException: the error itself, if it is another one.
        """
        if not _out_of_memory(error):
            raise error
        self._clear()
        longest = self._longest(rows)
        # One rank of several cannot cut smaller by itself: the others would wait for its sums forever.
        if self.world.size > 1 or self.tokens <= longest:
            raise RunError(
                f"Out of memory at update {update} with micro-batches of {self.tokens} tokens (longest record:"
                f" {longest}).",
                "Lower train.batch.micro or data.max_tokens, or set train.checkpointing=true.",
            ) from error

    def halve(self, rows: Sequence[Row], update: int, observe: Callable[[dict[str, Any]], None]) -> None:
        """Cut half as large from now on, but no smaller than the longest record.

        Args:
            observe: receives an event of the new size.
        """
        self.tokens = max(self._longest(rows), self.tokens // 2)
        observe({"event": "micro", "tokens": self.tokens, "update": update})
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _longest(self, rows: Sequence[Row]) -> int:
        """Positions of the longest record: its rows share a forward."""
        return max(positions(record, self.batching.layout) for record in group_by_record(rows))


def _out_of_memory(error: BaseException) -> bool:
    # On a processor torch raises a plain RuntimeError, known by its text only.
    text = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text
