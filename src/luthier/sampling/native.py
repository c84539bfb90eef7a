"""Generation by the model at hand: requests enter as rows become free, prompts that are equal are read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from luthier.errors import DataError
from luthier.models.kernels.folding import folded_in
from luthier.sampling.cache import common_prefix
from luthier.sampling.session import Prefilled, Session, SessionRow
from luthier.types import Request, Sampling, Trajectory

ENTER = 8  # waiting requests enter once an eighth of the rows is free: reading one prompt costs as much as a step
WORTH = 256  # positions saved that are worth a pass of their own over what all texts begin with


class NativeSampler:
    """Continues requests by a model in this process; a `Sampler`.

    Requests of equal text (prompt and forced tokens) share its pass through the model. A request's draws depend on
    its seed and on positions alone. Log-probabilities are those that training computes at the same temperature.

    Args:
        module: a causal LM with a key-value cache, also wrapped by PEFT; its mode is restored.
        end_ids: tokens that end a continuation; the one drawn is the last of `Trajectory.ids`.
        tokenizer: needed for stop strings.
        batch: rows decoded together; None chooses by memory.
    """

    def __init__(self, module: Any, end_ids: set[int], tokenizer: Any = None, batch: int | None = None):
        self.module, self.end_ids, self.tokenizer, self.batch = module, end_ids, tokenizer, batch

    def __call__(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] | None = None
    ) -> list[Trajectory]:
        """One trajectory per request, in their order.

        Raises:
            DataError: a prompt is empty or fills the model's context.
            ModelError: the model has no key-value cache.
        """
        with folded_in(self.module):
            return self._answers(requests, sampling, progress)

    def _answers(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] | None
    ) -> list[Trajectory]:
        session = Session(
            self.module, sampling, end_ids=self.end_ids, tokenizer=self.tokenizer, rows=self.batch, keep=False
        )
        texts = [(*request.prompt_ids, *request.forced_ids) for request in requests]
        check_prompts(texts, [*map(len, texts)], [request.record for request in requests], session.forward.context - 1)
        queue = _Queue(session, requests, texts)
        done = 0
        with session:
            while queue.waiting or session.rows:
                queue.admit()
                finished = session.step()
                for _ in finished if progress else ():
                    done += 1
                    progress(done)  # pyright: ignore[reportOptionalCall]
        return [_trajectory(request, queue.rows[index]) for index, request in enumerate(requests)]


class _Queue:
    """The requests that wait, the longest first (what does not fit in memory shows at once), equal texts together."""

    def __init__(self, session: Session, requests: Sequence[Request], texts: Sequence[tuple[int, ...]]):
        self.session, self.texts = session, texts
        self.rows = [session.row(one.prompt_ids, one.seed, one.forced_ids) for one in requests]
        first = {text: index for index, text in reversed([*enumerate(texts)])}
        self.waiting = sorted(range(len(texts)), key=lambda index: (-len(texts[index]), first[texts[index]], index))
        self.read: dict[tuple[int, ...], Prefilled] = {}
        self.prefix: list[int] | None = None

    def admit(self) -> None:
        """Let requests enter if enough rows are free."""
        session = self.session
        if not self.waiting or (session.rows and not session.plain):
            return
        if self.prefix is None:
            distinct = list(dict.fromkeys(self.texts))
            shared = common_prefix(distinct)
            self.prefix = list(distinct[0][: shared if shared * len(distinct) >= WORTH else 0])
            session.share(self.prefix)
        new = session.sampling.max_new_tokens
        longest = max([len(self.texts[self.waiting[0]]), *(len(row.tokens) for row in session.rows)])
        most = session.space.rows_of(min(longest + new, session.forward.context))
        free = most - len(session.rows)
        if session.rows and free * ENTER < most:
            return
        chosen, self.waiting = self.waiting[:free], self.waiting[free:]
        if chosen:
            self._enter(chosen)

    def _enter(self, chosen: list[int]) -> None:
        texts = [self.texts[index] for index in chosen]
        unread = [text for text in dict.fromkeys(texts) if text not in self.read]
        if unread:
            self.read |= dict(zip(unread, self.session.read(unread), strict=True))
        self.session.enter([self.rows[index] for index in chosen], [self.read[text] for text in texts])
        following = self.texts[self.waiting[0]] if self.waiting and self.session.plain else None
        self.read = {text: one for text, one in self.read.items() if text == following}


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

    `NativeSampler` for prompts that are not part of a group.

    Args:
        module: as NativeSampler.
        prompts: token ids of each prompt, none empty.
        end_ids: tokens that end a continuation.
        max_new_tokens: the most tokens of one continuation, the end token included.
        temperature: 0 takes the largest logit; otherwise logits are divided by it and a token is drawn.
        seeds: one per prompt. Default: its index.
        batch: prompts run together; None chooses by memory.
        progress: called with the number of prompts finished so far.
        records: record ids of the trajectories; default: the prompt's index.
    """
    names = [str(index) for index in range(len(prompts))] if records is None else records
    keys = range(len(prompts)) if seeds is None else seeds
    requests = [Request(prompt, name, seed=seed) for prompt, name, seed in zip(prompts, names, keys, strict=True)]
    sampler = NativeSampler(module, end_ids, batch=batch)
    return sampler(requests, Sampling(max_new_tokens, temperature), progress)


def check_prompts(prompts: Sequence[Sequence[int]], longest: Sequence[int], names: Sequence[str], room: int) -> None:
    """Check that each prompt holds a token and fits.

    Args:
        prompts: token ids of each.
        longest: positions that each prompt needs.
        names: their records.
        room: positions there are.

    Raises:
        DataError: naming the first record that does not fit.
    """
    for prompt, needed, name in zip(prompts, longest, names, strict=True):
        if not prompt or needed > room:
            size = f"takes {needed} tokens; the model has room for {room}" if prompt else "is empty"
            raise DataError(
                f"Record {name}: its prompt {size}.",
                "Shorten or drop the record (`data.max_tokens`, `data.too_long: drop`).",
            )


def _trajectory(request: Request, row: SessionRow) -> Trajectory:
    assert row.finish is not None
    return Trajectory(row.ids, row.finish, request.record, row.logprobs, request)
