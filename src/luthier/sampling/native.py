"""Batched generation with a key-value cache, on any causal LM of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from luthier.errors import DataError
from luthier.sampling.cache import Forward, keep_rows, prefill, rows_that_fit, sampling_mode
from luthier.types import Trajectory

LEAVE = 8  # finished rows leave once they are an eighth of the batch: leaving copies the cache of those that stay
MASK = (1 << 64) - 1


def generate(
    module: Any,
    prompts: Sequence[Sequence[int]],
    *,
    end_ids: set[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    batch: int | None = None,
    progress: Callable[[int], None] | None = None,
    records: Sequence[str] | None = None,
) -> list[Trajectory]:
    """Continue each prompt until an end token, `max_new_tokens`, or the end of the model's context.

    Args:
        module: a causal LM with a key-value cache; its mode is restored.
        prompts: token ids of each prompt, none empty.
        max_new_tokens: the most tokens of one continuation, the end token included.
        end_ids: tokens that end a continuation; the one drawn is the last of `Trajectory.ids`.
        temperature: 0 takes the largest logit; otherwise logits are divided by it and a token is drawn.
        seeds: one per prompt, for draws that depend on (seed, position) and on no other prompt. Default: its index.
        batch: prompts run together; None chooses by memory.
        progress: called with the number of prompts finished so far.
        records: record ids of the trajectories; default: the prompt's index.

    Returns:
        Trajectories in the order of `prompts`.

    Raises:
        DataError: a prompt is empty or fills the model's context.
        ModelError: the model has no key-value cache.
    """
    forward = Forward(module)
    names = check_prompts(prompts, [len(prompt) for prompt in prompts], records, forward.context - 1)
    keys = list(range(len(prompts))) if seeds is None else seeds
    draw = _greedy if temperature == 0 else _Draw(temperature, keys)
    found: dict[int, Trajectory] = {}
    with sampling_mode(module):
        for chosen in _batches(module, prompts, max_new_tokens, batch):
            for index, ids in _Decoding(forward, prompts, chosen, end_ids, max_new_tokens, draw).run():
                finish: Literal["stop", "length"] = "stop" if ids and ids[-1] in end_ids else "length"
                found[index] = Trajectory(ids, finish, names[index])
                if progress is not None:
                    progress(len(found))
    return [found[index] for index in range(len(prompts))]


def check_prompts(
    prompts: Sequence[Sequence[int]], longest: Sequence[int], records: Sequence[str] | None, room: int
) -> Sequence[str]:
    """Names for the prompts, once each is known to hold a token and to fit.

    Args:
        prompts: token ids of each.
        longest: positions that each prompt needs.
        records: their names; default: their index.
        room: positions there are.

    Raises:
        DataError: naming the first record that does not fit.
    """
    names = [str(index) for index in range(len(prompts))] if records is None else records
    for prompt, needed, name in zip(prompts, longest, names, strict=True):
        if not prompt or needed > room:
            size = f"takes {needed} tokens; the model has room for {room}" if prompt else "is empty"
            raise DataError(
                f"Record {name}: its prompt {size}.",
                "Shorten or drop the record (`data.max_tokens`, `data.too_long: drop`).",
            )
    return names


def _batches(module: Any, prompts: Sequence[Sequence[int]], new: int, batch: int | None) -> Iterator[list[int]]:
    """Indices of prompts of similar length, the longest first: what does not fit in memory shows at once."""
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    while order:
        size = batch or rows_that_fit(module, len(prompts[order[0]]) + new)
        yield order[:size]
        order = order[size:]


class _Decoding:
    """One batch from prefill to its last finished row; finished rows leave on the way."""

    def __init__(
        self,
        forward: Forward,
        prompts: Sequence[Sequence[int]],
        chosen: list[int],
        end_ids: set[int],
        new: int,
        draw: Callable[[Tensor, list[int], int], Tensor],
    ):
        self.forward, self.prompts, self.chosen = forward, prompts, chosen
        self.end_ids, self.new, self.draw = end_ids, new, draw
        self.written: dict[int, list[int]] = {index: [] for index in chosen}
        self.open = set(chosen)

    def run(self) -> Iterator[tuple[int, list[int]]]:
        """Yields (index of the prompt, its continuation) as rows finish."""
        rows = list(self.chosen)
        logits, mask, cache = prefill(self.forward, [self.prompts[index] for index in rows])
        positions = mask.sum(-1, keepdim=True) - 1
        for step in range(self.new):
            ids = self.draw(logits, rows, step)[:, None]
            yield from self._take(rows, ids[:, 0].tolist())
            if not self.open:
                return
            kept = [place for place, index in enumerate(rows) if index in self.open]
            if (len(rows) - len(kept)) * LEAVE >= len(rows):
                rows = [rows[place] for place in kept]
                ids, mask, positions = self._leave(cache, kept, ids, mask, positions)
            mask = torch.cat([mask, mask.new_ones((len(rows), 1))], dim=1)
            positions = positions + 1
            logits = self.forward(ids, mask, positions, cache, last=True)[:, 0]

    def _take(self, rows: list[int], tokens: list[int]) -> Iterator[tuple[int, list[int]]]:
        for index, token in zip(rows, tokens, strict=True):
            if index not in self.open:
                continue
            ids = self.written[index]
            ids.append(token)
            full = len(ids) >= self.new or len(self.prompts[index]) + len(ids) >= self.forward.context
            if token in self.end_ids or full:
                self.open.discard(index)
                yield index, ids

    def _leave(self, cache: DynamicCache, kept: list[int], *tensors: Tensor) -> tuple[Tensor, ...]:
        rows = torch.tensor(kept, device=self.forward.device)
        keep_rows(cache, rows)
        return tuple(tensor[rows] for tensor in tensors)


def _greedy(logits: Tensor, rows: list[int], step: int) -> Tensor:
    return logits.argmax(-1)


class _Draw:
    """Draws from softmax(logits / temperature) by inverting the distribution at one uniform number per row.

    The number is a hash of (seed of the row, step): no generator state, so neither batches nor rows that
    have left can change it.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]):
        self.temperature, self.seeds = temperature, seeds

    def __call__(self, logits: Tensor, rows: list[int], step: int) -> Tensor:
        wide = torch.float32 if logits.device.type == "mps" else torch.float64
        mass = (logits.to(wide) / self.temperature).softmax(-1).cumsum(-1)
        numbers = [uniform(self.seeds[index], step) for index in rows]
        at = torch.tensor(numbers, dtype=wide, device=logits.device)[:, None] * mass[:, -1:]
        return torch.searchsorted(mass, at, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def uniform(seed: int, step: int) -> float:
    """A number in [0,1) that depends on (seed, step) alone (two rounds of splitmix64)."""
    value = seed & MASK
    for addend in (0, step + 1):
        value = (value + 0x9E3779B97F4A7C15 * (addend + 1)) & MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
        value ^= value >> 31
    return (value >> 11) / (1 << 53)
