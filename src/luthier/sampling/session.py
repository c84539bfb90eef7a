"""A session: continuations of one model that are opened, stepped, forked, extended and closed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from luthier.errors import DataError, ModelError
from luthier.sampling._decoder import Decoder
from luthier.sampling._shared_prefixes import SharedPrefixes
from luthier.sampling.cache import Slots, Space, open_cache, prefill, sampling_mode, space_of
from luthier.sampling.check import CheckedWay, check
from luthier.sampling.draws import draw, uniforms
from luthier.sampling.state import Cache, Forward, State
from luthier.sampling.stops import StopWatch
from luthier.types import Sampling

PREFILL_POSITIONS = 4096  # of one pass over prompts
UNBOUNDED = 1 << 40  # positions per row, where the caller bounds the rows and not the memory


@dataclass(eq=False)
class SessionRow:
    """One continuation: `tokens` holds the prompt and, from index `start` on, the continuation.

    `logprobs` belong to the continuation; tokens that were not sampled have 0. `tokens_left` may still be sampled.
    """

    tokens: list[int]
    start: int
    seed: int
    tokens_left: int
    logprobs: list[float] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None
    stop_watch: StopWatch | None = None

    @property
    def ids(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[self.start :]


@dataclass(frozen=True)
class Prefilled:
    """A text that the model has read: its state, and the logits [V] of the next token."""

    state: State
    logits: Tensor


class Session:
    """Rows of one model that share a cache and advance one token per step, whatever their lengths.

    A row's random numbers depend on its seed and its position alone, so its tokens do not depend on the other rows
    (but for rounding). Used as a context manager, the model stays in sampling mode between calls. Otherwise every
    call switches there and back, so that training can continue between two steps.

    Args:
        module: a causal LM; its mode is restored.
        sampling: how tokens are drawn.
        end_ids: tokens that end a continuation; the continuation keeps the one that was drawn.
        tokenizer: needed for stop strings.
        rows: the largest number of rows at a time; None chooses by memory.
        keep: keep the state of rows that finish, for `extend`, until they are closed.
        texts: what will be read, as far as it is known; `check` (check.py) tries on them how the model can read it.

    Raises:
        ModelError: the model cannot generate, or stop strings are set and there is no tokenizer.
    """

    def __init__(
        self,
        module: Any,
        sampling: Sampling,
        *,
        end_ids: set[int],
        tokenizer: Any = None,
        rows: int | None = None,
        keep: bool = True,
        texts: Sequence[Sequence[int]] = (),
    ):
        if sampling.stop and tokenizer is None:
            raise ModelError("Stop strings are searched in text, and there is no tokenizer to decode it.")
        self.module, self.sampling, self.end_ids, self.tokenizer = module, sampling, end_ids, tokenizer
        self.forward = Forward(module)
        self.space = Space(rows, rows * UNBOUNDED) if rows else space_of(module)
        self.keep = keep
        self.rows: list[SessionRow] = []
        self.finished: dict[SessionRow, Prefilled] = {}
        self.shared_prefix: tuple[list[int], Prefilled] | None = None
        self.checked: CheckedWay | None = None
        self.cache = self._open_cache()
        self.logits: Tensor | None = None  # [rows,V], of each row's next token
        self.entered_mode: AbstractContextManager[None] | None = None
        if texts:
            with sampling_mode(module):
                self._check(texts)

    def _open_cache(self) -> Cache:
        # For one row: buffers grow with the rows that are added.
        cache = open_cache(self.forward, 1)
        if isinstance(cache, Slots) and self.checked is not None and self.checked.decoder:
            cache.decoder = Decoder(self.forward)
            # The model's own forward cannot read prefixes, so they need our decoder.
            cache.prefixes = SharedPrefixes()
        return cache

    def _check(self, texts: Sequence[Sequence[int]]) -> None:
        """Read from here on in a way that is right for these texts too. Call it in sampling mode.

        Where that is another way than before, everything that the session holds is read again.
        """
        checked = self.checked
        longest = max(map(len, texts)) + self.sampling.max_new_tokens
        if checked is not None and min(longest, self.forward.context) <= checked.length:
            return
        self.checked = check(self.forward, texts, self.sampling.max_new_tokens)
        if checked is not None and replace(self.checked, length=0) == replace(checked, length=0):
            return
        rows, self.rows, self.logits = self.rows, [], None
        self.cache = self._open_cache()
        prefix, self.shared_prefix = self.shared_prefix, None
        if rows:
            self.add(rows, self.prefill([row.tokens for row in rows]))
        for row in self.finished:
            self.finished[row] = self.prefill([row.tokens[:-1]])[0]
        if prefix:
            self.share(prefix[0])

    def __enter__(self) -> Session:
        self.entered_mode = sampling_mode(self.module)
        self.entered_mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        assert self.entered_mode is not None
        self.entered_mode.__exit__(*error)
        self.entered_mode = None

    def _sampling_mode(self) -> AbstractContextManager[None]:
        return sampling_mode(self.module) if self.entered_mode is None else nullcontext()

    @property
    def can_add(self) -> bool:
        """Whether rows can be added while others run."""
        return self.cache.can_add

    def open(self, prompt: Sequence[int], seeds: Sequence[int], forced: Sequence[int] = ()) -> list[SessionRow]:
        """Start one continuation of the prompt per seed; the model reads the prompt once.

        Args:
            prompt: token ids.
            seeds: one per continuation.
            forced: token ids that every continuation begins with; they are not sampled.

        Raises:
            DataError: prompt and forced tokens fill the model's context.
            ModelError: the model's cache cannot add rows while others run.
        """
        rows = [self.row(prompt, seed, forced) for seed in seeds]
        with self._sampling_mode():
            prefilled = self.prefill([[*prompt, *forced]])[0]
            self.add(rows, [prefilled] * len(rows))
        return rows

    def row(self, prompt: Sequence[int], seed: int, forced: Sequence[int] = ()) -> SessionRow:
        """A row that is not in the cache yet; `add` puts it there.

        Raises:
            DataError: prompt and forced tokens fill the model's context.
        """
        tokens = [*prompt, *forced]
        row = SessionRow(tokens, len(prompt), seed, 0, [0.0] * len(forced))
        return self._renew(row)

    def _renew(self, row: SessionRow) -> SessionRow:
        """Let the row sample `max_new_tokens` more, as far as the context allows."""
        row.tokens_left = min(self.sampling.max_new_tokens, self.forward.context - len(row.tokens))
        if row.tokens_left < 1:
            raise DataError(
                f"A text of {len(row.tokens)} tokens fills the model's context of {self.forward.context}.",
                "Shorten the prompt or the tokens appended to it.",
            )
        row.finish = None
        if self.sampling.stop:
            # A new watch begins behind the appended tokens: a stop string in a tool's reply ends nothing.
            row.stop_watch = StopWatch(self.tokenizer, self.sampling.stop, row.tokens, len(row.tokens))
        return row

    def share(self, prefix: Sequence[int]) -> None:
        """Run a prefix through the model once, for all later texts that begin with it.

        Without effect where the cache cannot add rows: its states cannot be continued by several texts.
        """
        with self._sampling_mode():
            if prefix:
                self._check([prefix])
            if prefix and self.can_add and self.forward.way.prefix:
                self.shared_prefix = (list(prefix), self.prefill([prefix])[0])

    def prefill(self, texts: Sequence[Sequence[int]], before: State | None = None) -> list[Prefilled]:
        """Run texts through the model without adding rows. Call it in sampling mode.

        Args:
            texts: token ids of each text, none empty.
            before: the state that all texts continue.
        """
        if before is None:
            self._check(texts)
        if self.shared_prefix and before is None:
            prefix, known = self.shared_prefix
            if all(len(text) > len(prefix) and list(text[: len(prefix)]) == prefix for text in texts):
                before, texts = known.state, [text[len(prefix) :] for text in texts]
        prefilled: list[Prefilled] = []
        # Rows that can only start together have to come from one cache, so from one pass.
        size = max(1, PREFILL_POSITIONS // max(map(len, texts))) if self.can_add else len(texts)
        for first in range(0, len(texts), size):
            logits, states = prefill(self.forward, texts[first : first + size], before)
            prefilled += [Prefilled(state, next_logits) for state, next_logits in zip(states, logits, strict=True)]
        return prefilled

    def add(self, rows: Sequence[SessionRow], prefilled: Sequence[Prefilled]) -> None:
        """Add rows whose texts were prefilled, in the same order. Call it in sampling mode.

        Raises:
            ModelError: the model's cache cannot add rows while others run.
        """
        if not self.can_add and self.rows:
            raise ModelError(
                f"The cache of {type(self.forward.inner).__name__} keeps states that new rows cannot join.",
                "Open all rows at once, or close those that run.",
            )
        self.cache.add([text.state for text in prefilled])
        logits = torch.stack([text.logits for text in prefilled])
        self.logits = logits if self.logits is None else torch.cat([self.logits, logits])
        self.rows += rows

    def step(self, count: int = 1) -> list[SessionRow]:
        """Draw up to `count` tokens for every row; returns the rows that finished, which later steps leave out."""
        finished: list[SessionRow] = []
        with self._sampling_mode():
            for _ in range(count):
                if not self.rows:
                    break
                finished += self._step()
        return finished

    def _step(self) -> list[SessionRow]:
        assert self.logits is not None
        steps = [len(row.tokens) - row.start for row in self.rows]
        numbers = uniforms([row.seed for row in self.rows], steps)
        ids, logprobs = draw(self.logits, self.sampling, numbers)
        removed: set[int] = set()
        # `tolist` for all rows at once: reading row by row would wait for the device each time.
        for index, (row, token, logprob) in enumerate(zip(self.rows, ids.tolist(), logprobs.tolist(), strict=True)):
            row.tokens.append(token)
            row.logprobs.append(logprob)
            row.tokens_left -= 1
            if token in self.end_ids or (row.stop_watch is not None and row.stop_watch.reached()):
                row.finish = "stop"
            elif row.tokens_left <= 0:
                row.finish = "length"
            if row.finish:
                removed.add(index)
        finished = [self.rows[index] for index in sorted(removed)]
        if removed:
            # Before `advance`: nobody needs the logits behind a last token.
            ids = self._retire(removed, ids)
        self.logits = self.cache.advance(ids) if self.rows else None
        return finished

    def _retire(self, removed: set[int], ids: Tensor) -> Tensor:
        """Remove finished rows; returns the tokens `ids` [rows] of the remaining rows, in their new order."""
        if self.keep and self.logits is not None:
            for index in sorted(removed):
                self.finished[self.rows[index]] = Prefilled(self.cache.state(index), self.logits[index])
        order = self.cache.remove(removed)
        self.rows = [self.rows[index] for index in order]
        return ids[order]

    def fork(self, row: SessionRow, seeds: Sequence[int]) -> list[SessionRow]:
        """Copies of a running row that draw with seeds of their own from here on; nothing is computed again.

        Raises:
            ModelError: the row does not run, or the model's cache cannot add rows.
        """
        index = self._index(row)
        assert self.logits is not None
        with self._sampling_mode():
            prefilled = Prefilled(self.cache.state(index), self.logits[index])
            forks: list[SessionRow] = []
            for seed in seeds:
                fork = SessionRow(list(row.tokens), row.start, seed, row.tokens_left, list(row.logprobs))
                if row.stop_watch is not None:
                    fork.stop_watch = row.stop_watch.copy(fork.tokens)
                forks.append(fork)
            self.add(forks, [prefilled] * len(forks))
        return forks

    def extend(self, row: SessionRow, ids: Sequence[int]) -> None:
        """Append tokens that were not sampled (a tool's reply) to a running or finished row, which then continues.

        Raises:
            DataError: the row then fills the model's context.
            ModelError: the row was closed, or the model's cache cannot add rows.
        """
        if not self.can_add:
            raise ModelError(f"The cache of {type(self.forward.inner).__name__} keeps states that cannot be extended.")
        if not ids:
            return
        with self._sampling_mode():
            self._check([[*row.tokens, *ids]])
            if row in self.finished:
                # A row finishes before the model has read its last token.
                state, pending = self.finished.pop(row).state, [row.tokens[-1], *ids]
            else:
                index = self._index(row)
                state, pending = self.cache.state(index), list(ids)
                self._drop(index)
            row.tokens += ids
            row.logprobs += [0.0] * len(ids)
            self.add([self._renew(row)], self.prefill([pending], state))

    def close(self, row: SessionRow) -> None:
        """End a row and free its state."""
        if row in self.finished:
            del self.finished[row]
        elif row in self.rows:
            with self._sampling_mode():
                self._drop(self._index(row))

    def _drop(self, index: int) -> None:
        """Remove a running row from the cache."""
        assert self.logits is not None
        # `remove` moves the last row into the gap, so rows and logits follow its order.
        order = self.cache.remove({index})
        self.rows = [self.rows[old] for old in order]
        self.logits = self.logits[order] if order else None

    def _index(self, row: SessionRow) -> int:
        if row not in self.rows:
            raise ModelError("This row does not run: it was closed, or it finished and was not extended.")
        return self.rows.index(row)
