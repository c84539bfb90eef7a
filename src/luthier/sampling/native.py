"""Generation by a model in this process: requests are added as rows become free, equal prompts are read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from luthier.errors import DataError
from luthier.models.kernels.folding import folded_in
from luthier.sampling.cache import common_prefix
from luthier.sampling.session import Prefilled, Session, SessionRow
from luthier.sampling.state import Forward
from luthier.types import Request, Sampling, Trajectory

FREE_SHARE = 8  # an eighth of the rows has to be free before requests are added: a prompt costs as much as a step
WORTH_SHARING = 256  # positions that have to be saved before a common prefix gets a pass of its own


class NativeSampler:
    """A `Sampler`: a model in this process continues the requests.

    The model reads a text (prompt and forced tokens) once for all requests that have it. A request's draws depend on
    its seed and on positions alone. Log-probabilities are those that training computes at the same temperature.

    Args:
        module: a causal LM, also wrapped by PEFT; its mode is restored.
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
            ModelError: the model cannot generate.
        """
        # Adapters are added to the weights while the model answers: two products less at every layer and step.
        with folded_in(self.module):
            return self._continue(requests, sampling, progress)

    def _continue(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] | None
    ) -> list[Trajectory]:
        texts = [(*request.prompt_ids, *request.forced_ids) for request in requests]
        names = [request.record for request in requests]
        check_prompts(texts, [*map(len, texts)], names, Forward(self.module).context - 1)
        session = Session(
            self.module,
            sampling,
            end_ids=self.end_ids,
            tokenizer=self.tokenizer,
            rows=self.batch,
            keep=False,
            texts=texts,
        )
        queue = _Queue(session, requests, texts)
        done = 0
        with session:
            while queue.waiting or session.rows:
                queue.add_requests()
                finished = session.step()
                for _ in finished if progress else ():
                    done += 1
                    progress(done)  # pyright: ignore[reportOptionalCall]
        return [_trajectory(request, queue.rows[index]) for index, request in enumerate(requests)]


class _Queue:
    """The waiting requests: the longest first, so that a lack of memory shows at once; equal texts are neighbours."""

    def __init__(self, session: Session, requests: Sequence[Request], texts: Sequence[tuple[int, ...]]):
        self.session, self.texts = session, texts
        self.rows = [session.row(request.prompt_ids, request.seed, request.forced_ids) for request in requests]
        first_index: dict[tuple[int, ...], int] = {}
        for index, text in enumerate(texts):
            first_index.setdefault(text, index)

        def order(index: int) -> tuple[int, int, int]:
            return -len(texts[index]), first_index[texts[index]], index

        self.waiting = sorted(range(len(texts)), key=order)
        self.prefilled: dict[tuple[int, ...], Prefilled] = {}
        self.prefix: list[int] | None = None

    def add_requests(self) -> None:
        """Add waiting requests to the session if enough rows are free."""
        session = self.session
        if not self.waiting or (session.rows and not session.can_add):
            return
        if self.prefix is None:
            distinct = list(dict.fromkeys(self.texts))
            shared = common_prefix(distinct)
            self.prefix = list(distinct[0][: shared if shared * len(distinct) >= WORTH_SHARING else 0])
            session.share(self.prefix)
        # The longest text that waits is the first; every row may still grow to that length plus the new tokens.
        new = session.sampling.max_new_tokens
        longest = max([len(self.texts[self.waiting[0]]), *(len(row.tokens) for row in session.rows)])
        most = session.space.rows_of(min(longest + new, session.forward.context))
        free = most - len(session.rows)
        if session.rows and free * FREE_SHARE < most:
            return
        chosen, self.waiting = self.waiting[:free], self.waiting[free:]
        if chosen:
            self._add(chosen)

    def _add(self, chosen: list[int]) -> None:
        """Prefill the texts of these requests and add their rows."""
        texts = [self.texts[index] for index in chosen]
        unread = [text for text in dict.fromkeys(texts) if text not in self.prefilled]
        if unread:
            self.prefilled |= dict(zip(unread, self.session.prefill(unread), strict=True))
        self.session.add([self.rows[index] for index in chosen], [self.prefilled[text] for text in texts])
        # Equal texts are neighbours, so only the next text can be needed again; the other states are freed.
        following = self.texts[self.waiting[0]] if self.waiting and self.session.can_add else None
        self.prefilled = {text: state for text, state in self.prefilled.items() if text == following}


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

    A shorthand for `NativeSampler`, which also raises its errors.

    Args:
        module: a causal LM.
        prompts: token ids of each prompt, none empty.
        end_ids: tokens that end a continuation.
        max_new_tokens: the most tokens of one continuation, the end token included.
        temperature: 0 takes the largest logit; otherwise logits are divided by it and a token is drawn.
        seeds: one per prompt. Default: its index.
        batch: prompts run together; None chooses by memory.
        progress: called with the number of prompts finished so far.
        records: record ids of the trajectories; default: the prompt's index.
    """
    records = [str(index) for index in range(len(prompts))] if records is None else records
    seeds = range(len(prompts)) if seeds is None else seeds
    requests: list[Request] = []
    for prompt, record, seed in zip(prompts, records, seeds, strict=True):
        requests.append(Request(prompt, record, seed=seed))
    sampler = NativeSampler(module, end_ids, batch=batch)
    return sampler(requests, Sampling(max_new_tokens, temperature), progress)


def check_prompts(prompts: Sequence[Sequence[int]], longest: Sequence[int], names: Sequence[str], room: int) -> None:
    """Check that no prompt is empty or too long.

    Args:
        prompts: token ids of each prompt.
        longest: positions that each prompt needs, its continuation included.
        names: record ids of the prompts.
        room: positions that the model has.

    Raises:
        DataError: names the first record whose prompt is empty or does not fit.
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
