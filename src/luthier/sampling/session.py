"""A session: continuations of one model that are opened, stepped, forked, extended and closed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from luthier.errors import DataError, ModelError
from luthier.sampling._decoder import decoder_of
from luthier.sampling._trunks import Trunks
from luthier.sampling.cache import Slots, Space, open_rows, prefill, sampling_mode, space_of
from luthier.sampling.draws import draw, uniforms
from luthier.sampling.state import Forward, State
from luthier.sampling.stops import StopWatch
from luthier.types import Sampling

PREFILL = 4096  # positions of one pass over prompts


@dataclass(eq=False)
class SessionRow:
    """One continuation: `tokens` from its first on, of which those from `start` on are its own."""

    tokens: list[int]
    start: int
    seed: int
    left: int
    logprobs: list[float] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None
    watch: StopWatch | None = None

    @property
    def ids(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[self.start :]


@dataclass(frozen=True)
class Prefilled:
    """A text that the model has read: its state, and the logits [V] of what follows."""

    state: State
    logits: Tensor


class Session:
    """Rows of one model that share a cache and take each step together, however far each of them is.

    A row draws with numbers that depend on its seed and its position alone, so what it says does not depend on
    the rows beside it (but for rounding). Used as a context manager, the model stays in sampling mode between
    calls; otherwise every call switches there and back, so that training can go on between two steps.

    Args:
        module: a causal LM with a key-value cache; its mode is restored.
        sampling: how tokens are drawn.
        end_ids: tokens that end a continuation; the one drawn is kept.
        tokenizer: needed for stop strings.
        rows: the most rows at a time; None chooses by memory.
        keep: hold the state of rows that finish, for `fork` and `extend`, until they are closed.

    Raises:
        ModelError: the model has no key-value cache, or stop strings are asked for without a tokenizer.
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
    ):
        if sampling.stop and tokenizer is None:
            raise ModelError("Stop strings are found in text, and there is no tokenizer to write it.")
        self.module, self.sampling, self.end_ids, self.tokenizer = module, sampling, end_ids, tokenizer
        self.forward = Forward(module)
        space = space_of(module)
        self.space = Space(rows, rows << 40) if rows else space
        self.keep = keep
        self.rows: list[SessionRow] = []
        self.held: dict[SessionRow, Prefilled] = {}
        self.shared: tuple[list[int], Prefilled] | None = None
        self.cached = open_rows(self.forward, 1)
        with sampling_mode(module):
            if isinstance(self.cached, Slots):
                self.cached.decoder = decoder_of(self.forward, self.cached)
                self.cached.trunks = Trunks() if self.cached.decoder else None
        self.logits: Tensor | None = None
        self.mode: AbstractContextManager[None] | None = None

    def __enter__(self) -> Session:
        self.mode = sampling_mode(self.module)
        self.mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        assert self.mode is not None
        self.mode.__exit__(*error)
        self.mode = None

    def _sampling(self) -> AbstractContextManager[None]:
        return sampling_mode(self.module) if self.mode is None else nullcontext()

    @property
    def plain(self) -> bool:
        """Whether rows can enter at any time."""
        return self.cached.plain

    def open(self, prompt: Sequence[int], seeds: Sequence[int], forced: Sequence[int] = ()) -> list[SessionRow]:
        """Start one continuation per seed of one prompt, which is read once.

        Args:
            prompt: token ids.
            seeds: of the draws.
            forced: the first tokens of the continuations; they are given, not drawn.
        """
        rows = [self.row(prompt, seed, forced) for seed in seeds]
        with self._sampling():
            found = self.read([[*prompt, *forced]])[0]
            self.enter(rows, [found] * len(rows))
        return rows

    def row(self, prompt: Sequence[int], seed: int, forced: Sequence[int] = ()) -> SessionRow:
        """A row that has not entered."""
        tokens = [*prompt, *forced]
        row = SessionRow(tokens, len(prompt), seed, 0, [0.0] * len(forced))
        return self._allow(row)

    def _allow(self, row: SessionRow) -> SessionRow:
        """A fresh allowance of tokens, within the context of the model."""
        row.left = min(self.sampling.max_new_tokens, self.forward.context - len(row.tokens))
        if row.left < 1:
            raise DataError(
                f"A text of {len(row.tokens)} tokens fills the model's context of {self.forward.context}.",
                "Shorten the prompt or what is appended to it.",
            )
        row.finish = None
        if self.sampling.stop:
            row.watch = StopWatch(self.tokenizer, self.sampling.stop, row.tokens, len(row.tokens))
        return row

    def share(self, prefix: Sequence[int]) -> None:
        """Read once what the texts read later begin with; no use where states are no lists of positions."""
        if prefix and self.plain:
            with self._sampling():
                self.shared = (list(prefix), self.read([prefix])[0])

    def read(self, texts: Sequence[Sequence[int]], before: State | None = None) -> list[Prefilled]:
        """Run texts through the model, without entering; call it in sampling mode."""
        if self.shared and before is None:
            start, known = len(self.shared[0]), self.shared[1]
            if all(len(text) > start and list(text[:start]) == self.shared[0] for text in texts):
                before, texts = known.state, [text[start:] for text in texts]
        found: list[Prefilled] = []
        size = max(1, PREFILL // max(map(len, texts))) if self.plain else len(texts)
        for place in range(0, len(texts), size):
            logits, states = prefill(self.forward, texts[place : place + size], before)
            found += [Prefilled(state, one) for state, one in zip(states, logits, strict=True)]
        return found

    def enter(self, rows: Sequence[SessionRow], read: Sequence[Prefilled]) -> None:
        """Let rows take part whose texts were read; call it in sampling mode."""
        if not self.plain and self.rows:
            raise ModelError(
                f"{type(self.forward.inner).__name__} keeps states that new rows cannot join.",
                "Open all rows at once, or close those that run.",
            )
        self.cached.enter([one.state for one in read])
        logits = torch.stack([one.logits for one in read])
        self.logits = logits if self.logits is None else torch.cat([self.logits, logits])
        self.rows += rows

    def step(self, count: int = 1) -> list[SessionRow]:
        """Draw up to `count` tokens for every row; returns the rows that finished, which take part no more."""
        finished: list[SessionRow] = []
        with self._sampling():
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
        gone: set[int] = set()
        for place, (row, token, value) in enumerate(zip(self.rows, ids.tolist(), logprobs.tolist(), strict=True)):
            row.tokens.append(token)
            row.logprobs.append(value)
            row.left -= 1
            if token in self.end_ids or (row.watch is not None and row.watch.found()):
                row.finish = "stop"
            elif row.left <= 0:
                row.finish = "length"
            if row.finish:
                gone.add(place)
        finished = [self.rows[place] for place in sorted(gone)]
        if gone:
            ids = self._retire(gone, ids)
        self.logits = self.cached.advance(ids) if self.rows else None
        return finished

    def _retire(self, gone: set[int], ids: Tensor) -> Tensor:
        """Take rows out; returns the tokens of those that stay, in their new order."""
        if self.keep and self.logits is not None:
            self.held |= {self.rows[p]: Prefilled(self.cached.state(p), self.logits[p]) for p in sorted(gone)}
        order = self.cached.save_assets(gone)
        self.rows = [self.rows[place] for place in order]
        return ids[order]

    def fork(self, row: SessionRow, seeds: Sequence[int]) -> list[SessionRow]:
        """Siblings of a row that runs: same tokens so far, own draws from here on; nothing is computed again."""
        place = self._place(row)
        assert self.logits is not None
        with self._sampling():
            found = Prefilled(self.cached.state(place), self.logits[place])
            made = [SessionRow(list(row.tokens), row.start, seed, row.left, list(row.logprobs)) for seed in seeds]
            for one in made:
                if row.watch is not None:
                    one.watch = row.watch.copy(one.tokens)
            self.enter(made, [found] * len(made))
        return made

    def extend(self, row: SessionRow, ids: Sequence[int]) -> None:
        """Append given tokens (the result of a tool) to a row, running or finished, and let it go on."""
        if not self.plain:
            raise ModelError(f"{type(self.forward.inner).__name__} keeps states that cannot be extended.")
        if not ids:
            return
        with self._sampling():
            if row in self.held:
                state, pending = self.held.pop(row).state, [row.tokens[-1], *ids]
            else:
                place = self._place(row)
                state, pending = self.cached.state(place), list(ids)
                self._drop(place)
            row.tokens += ids
            row.logprobs += [0.0] * len(ids)
            self.enter([self._allow(row)], self.read([pending], state))

    def close(self, row: SessionRow) -> None:
        """End a row and forget its state."""
        if row in self.held:
            del self.held[row]
        elif row in self.rows:
            with self._sampling():
                self._drop(self._place(row))

    def _drop(self, place: int) -> None:
        assert self.logits is not None
        order = self.cached.save_assets({place})
        self.rows = [self.rows[one] for one in order]
        self.logits = self.logits[order] if order else None

    def _place(self, row: SessionRow) -> int:
        if row not in self.rows:
            raise ModelError("This row does not run: it was closed, or it finished and was not extended.")
        return self.rows.index(row)
