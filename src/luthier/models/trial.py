"""What a language model computes of a run's own rows: of each alone, and of the same rows within batches.

A layout is used for training only where a row's hidden states in it are those of the row alone, which the model reads
by itself: `module(input_ids)`, without positions and masks of ours. No list of known models decides.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import numpy
import psutil
import torch
from torch import Tensor

from luthier.errors import LuthierError, ModelError
from luthier.models.checks import in_words, verify_head
from luthier.models.logits import in_mode
from luthier.models.policy import TokenPolicy, reading
from luthier.types import Batch, Row, Stream

TOLERANCE = {torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""Largest difference of a position's hidden state, as a share of its length: short types round otherwise in rows of
another length (SmolLM2 in bfloat16: 0.02)."""
WIDE_TOLERANCE = 5e-5
"""As TOLERANCE, for float32 and wider: rounding gives 5e-7 in small random models."""
SHORT = 16
"""Positions of the beginning whose second half is changed: in a longer row each later token weighs less."""
SMALL = 50_000_000
"""Parameters up to which a float32 copy costs less than a second."""
ROWS, ROWS_OF_SMALL = 2, 8
"""Rows of several lengths that a layout is tried on, of large and of SMALL models."""
FREE_SHARE = 0.5
"""Share of the free memory that a copy of the model in float32 may take."""


def verify_model(policy: TokenPolicy, rows: Sequence[Row]) -> None:
    """Check that the head is known, and on the longest of these rows that no state depends on later tokens.

    Raises:
        ModelError: one of them does not hold, or the model cannot read tokens alone.
    """
    verify_head(policy)
    if rows:
        RowTrial(policy).refuse_future(max(rows, key=len))


def ragged_layout(policy: TokenPolicy, rows: Sequence[Row]) -> Literal["padded", "even"]:
    """How rows of several lengths are put into forwards: as the policy was tried before, else tried on these rows.

    Raises:
        ModelError: a row's states change beside another row of its length.
    """
    if policy.ragged is None and (rows := [row for row in rows if len(row.ids)]):
        policy.ragged = RowTrial(policy).layout_of_ragged(rows)
    return policy.ragged or "padded"


class RowTrial:
    """Compares hidden states of a policy's model on rows. Nothing is left behind: no hook, mode or gradient.

    A difference that rounding could explain in bfloat16 or float16 is looked at again in a float32 copy of the model,
    as far as memory allows.
    """

    def __init__(self, policy: TokenPolicy):
        self.policy = policy
        self.reason = ""
        """Why the last comparison failed: a difference, or the error that the model raised."""
        self._parameters = sum(p.numel() for p in policy.module.parameters())
        self.small = self._parameters <= SMALL
        self._wide: TokenPolicy | None = None
        self._alone: dict[tuple[bool, bytes], Tensor] = {}

    def refuse_unreadable(self, row: Row) -> None:
        """Raise ModelError if the model cannot read this row."""
        name = type(self.policy.module).__name__
        try:
            hidden = self.alone(self._ids(row))
        except LuthierError:
            raise
        except Exception as error:
            raise ModelError(
                f"{name} cannot read a row of {len(row)} tokens (record {row.record}): {in_words(error)}.",
                "Lower data.max_tokens, or choose a causal language model.",
            ) from error
        if hidden.shape[0] != len(row):
            raise ModelError(
                f"{name} gives {hidden.shape[0]} hidden states for a row of {len(row)} tokens, and cannot be trained."
            )

    def refuse_detached(self, row: Row) -> None:
        """Raise ModelError if the states of this row depend on no weight that is trained, so that nothing is learned.

        Reversible layers, for instance, give no gradient to adapters within them where the embeddings are frozen.
        """
        module, head = self.policy.module, {id(weight) for weight in self.policy.output.parameters()}
        if not any(weight.requires_grad and id(weight) not in head for weight in module.parameters()):
            return  # the head alone is trained, or weights that the module does not list
        with reading(module), torch.enable_grad():
            attached = self.policy.input_of_head({"input_ids": self._ids(row)[None]}).requires_grad
        if not attached:
            raise ModelError(
                f"No gradient reaches the weights that are trained: {type(module).__name__} computes its layers outside"
                " of autograd.",
                "Train all weights (train.tuner=full), or choose another model.",
            )

    def fault_of_training_mode(self, rows: Sequence[Row]) -> str:
        """Why the model reads a row of these in eval mode alone, or nothing: training mode may be stricter."""
        tried = self.chosen(rows)
        try:
            # Of a large model the shortest row alone, for time.
            for row in tried if self.small else tried[-1:]:
                with in_mode(self.policy.module, training=True), torch.no_grad():
                    self.policy.input_of_head({"input_ids": self._ids(row)[None]})
        except Exception as error:  # a model's own code may raise anything
            return in_words(error)
        return ""

    def refuse_future(self, row: Row) -> None:
        """Raise ModelError if hidden states depend on later tokens: the second half of the row's beginning changes."""
        ends = two_endings(row)
        if len(ends) < 2:
            return
        ids, changed = map(self._ids, ends)
        half = ends[1].shared
        if not self._alike(lambda wide: (self.alone(changed, wide)[:half], self.alone(ids, wide)[:half]), strict=True):
            raise ModelError(
                f"{type(self.policy.module).__name__} sees the future: hidden states change with tokens behind them"
                f" ({self.reason}), so it would learn to copy the answer.",
                "Only causal models can be trained here. An encoder may have an option such as `is_decoder` in its"
                " config.json.",
            )

    def agrees(self, batch: Batch, rows: Sequence[Row]) -> bool:
        """Whether the rows of this batch have the hidden states that each has alone; False also where it fails."""

        def compared(wide: bool) -> tuple[Tensor, Tensor]:
            policy = self._policy(wide)
            moved = batch.to(_device(policy))
            with reading(policy.module):
                together = policy.states(moved)
            pieces, alone = [], []
            for example, row in enumerate(rows):
                here = moved.example_of == example
                pieces.append(together[here])
                alone.append(self.alone(self._ids(row), wide)[moved.position_of[here]])
            return torch.cat(pieces), torch.cat(alone)

        return self._alike(compared)

    def padded(self, rows: Sequence[Row]) -> bool:
        """Whether rows of several lengths can be padded on the right to one batch, as `agrees`."""

        def compared(wide: bool) -> tuple[Tensor, Tensor]:
            policy = self._policy(wide)
            ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long, device=_device(policy))
            for line, row in zip(ids, rows, strict=True):
                line[: len(row)] = self._ids(row)
            with reading(policy.module):
                together = policy.input_of_head({"input_ids": ids})
            pieces = [line[: len(row)] for line, row in zip(together, rows, strict=True)]
            return torch.cat(pieces), torch.cat([self.alone(self._ids(row), wide) for row in rows])

        return self._alike(compared)

    def layout_of_ragged(self, rows: Sequence[Row]) -> Literal["padded", "even"]:
        """`padded` where rows of several lengths keep their states in one batch, else `even`: one length at a time.

        Raises:
            ModelError: a row's states change beside another row of its length.
        """
        tried = self.chosen(rows)
        if self.padded(tried if len(tried) > 1 else tried * 2):
            return "padded"
        for row in tried:
            # Beside a row of the same length: its own tokens in another order.
            other = replace(row, id=f"{row.id}/other", ids=row.ids[::-1].copy())
            if not self.padded([row, other]):
                raise ModelError(
                    f"{type(self.policy.module).__name__} reads a row of {len(row)} tokens otherwise in a batch than"
                    f" alone: {self.reason}.",
                    "Its loss would depend on how records are cut into batches, so it cannot be used here.",
                )
        return "even"

    def chosen(self, rows: Sequence[Row]) -> list[Row]:
        """The rows to try a layout on, the longest first: few of a large model, for time."""
        return ragged(rows, ROWS_OF_SMALL if self.small else ROWS)

    def alone(self, ids: Tensor, wide: bool = False) -> Tensor:
        """Hidden states [T,D] of one row of token ids [T], as the model reads it by itself."""
        key = (wide, ids.cpu().numpy().tobytes())
        if key not in self._alone:
            policy = self._policy(wide)
            with reading(policy.module):
                self._alone[key] = policy.input_of_head({"input_ids": ids[None]})[0]
        return self._alone[key]

    def _alike(self, compared: Any, strict: bool = False) -> bool:
        """Whether two tensors of states [n,D] agree, `compared(wide)`; any error of the model is a no.

        Args:
            strict: both are of forwards of one shape, which round alike: any difference is looked at in float32.
        """
        narrow = self._dtype in TOLERANCE
        try:
            error = _error(*compared(False))
            # Nearly the same bits need no second look, which costs little in small models, whose faults may be small.
            if narrow and error > WIDE_TOLERANCE and self._can_widen(error > TOLERANCE[self._dtype] or strict):
                with suppress(Exception):  # a model that does not work in float32 is judged in its own type
                    error, narrow = _error(*compared(True)), False
        except Exception as failure:  # whatever a model raises here, it would raise in training
            self.reason = in_words(failure)
            return False
        self.reason = f"they differ by {100 * error:.0f}%" if error >= 0.01 else f"they differ by {100 * error:.2g}%"
        return error <= (TOLERANCE[self._dtype] if narrow else WIDE_TOLERANCE)

    @property
    def _dtype(self) -> torch.dtype:
        return self.policy.output.weight.dtype  # pyright: ignore[reportReturnType]

    def _can_widen(self, needed: bool) -> bool:
        """Whether a float32 copy of the model exists, or is made now: where it is needed and fits, or is small."""
        if self._wide is None:
            fits = 4 * self._parameters <= FREE_SHARE * _free_bytes(_device(self.policy))
            if not fits or not (needed or self.small):
                return False
            with suppress(Exception):  # quantised weights have no float32
                self._wide = TokenPolicy(copy.deepcopy(self.policy.module).float(), self.policy.temperature)
        return self._wide is not None

    def _policy(self, wide: bool) -> TokenPolicy:
        return self._wide if wide and self._wide is not None else self.policy

    def _ids(self, row: Row) -> Tensor:
        return torch.as_tensor(row.ids, dtype=torch.long, device=_device(self.policy))


def two_endings(row: Row, length: int | None = SHORT) -> list[Row]:
    """The row's first positions, and the same with a changed second half, which shares the first; one token: none."""
    ids = row.ids[:length]
    half = len(ids) // 2
    if not half:
        return []
    changed = ids.copy()
    changed[half:] = numpy.where(ids[half:] > 0, ids[half:] - 1, 1)
    weights = Stream((numpy.arange(len(ids)) >= half).astype(numpy.float32), "token")
    beginning = Row(f"{row.id}/beginning", ids, {"weights": weights})
    return [beginning, Row(f"{row.id}/other", changed, {"weights": weights}, shared=half)]


def ragged(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` rows from the longest to the shortest, evenly by rank: what a ragged batch may hold."""
    ordered = sorted(rows, key=lambda row: (-len(row), row.id))
    ranks = [round(index * (len(ordered) - 1) / max(1, count - 1)) for index in range(count)]
    return [ordered[rank] for rank in sorted(set(ranks))]


def _error(states: Tensor, alone: Tensor) -> float:
    """The largest difference of a position, as a share of the length of its state alone.

    NaN on one side counts as all of it. On both it is no difference: whoever reads a row of broken weights names it.
    """
    difference = (states - alone).float().norm(dim=-1) / alone.float().norm(dim=-1).clamp_min(1e-12)
    broken = states.isnan().any(-1) & alone.isnan().any(-1)
    return float(difference.nan_to_num(nan=1.0).masked_fill(broken, 0.0).max()) if len(difference) else 0.0


def _device(policy: TokenPolicy) -> torch.device:
    return next(policy.module.parameters()).device


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
