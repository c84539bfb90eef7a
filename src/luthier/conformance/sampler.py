"""The checks of samplers: the contract of `types.Sampler`, with the packaged tiny language model and its tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy

from luthier.conformance.base import Failed, variants
from luthier.data.render import Renderer
from luthier.errors import RunError
from luthier.models.loading.load import Loaded, load_model
from luthier.recipe.settings import Model as ModelSettings
from luthier.sampling.samplers.base import Asking, SamplerPart
from luthier.types import Record, Request, Sampler, Sampling, Trajectory

QUESTIONS = ("reverse abc", "copy fgh", "What is 12 + 30?", "reverse lmnop")
MODEL = "nano"
LENGTH = 12
"""Tokens of an answer at most."""
GREEDY, DRAWN = Sampling(max_new_tokens=LENGTH), Sampling(max_new_tokens=LENGTH, temperature=1.5)
FORCED = 2
"""Tokens that a request forces, if the sampler is the model of the step itself."""


@cache
def _language_model() -> tuple[Loaded, Renderer]:
    loaded = load_model(ModelSettings(path=MODEL, dtype="float32"), Path())
    return loaded, Renderer(loaded.tokenizer)


def sampler_of(part: SamplerPart) -> Sampler:
    """The sampler that the part makes for the tiny model."""
    loaded, renderer = _language_model()
    return part.make(Asking(loaded.module, loaded.tokenizer, renderer.end_ids, renderer.end_id, rows=3))


def requests(seed: int = 0) -> list[Request]:
    """Two answers to each question, with seeds of their own."""
    _, renderer = _language_model()
    requests_made = []
    for number, question in enumerate(QUESTIONS):
        record = Record(f"record-{number}", "prompt_completion", {"prompt": question, "completion": "-"}, question)
        messages = {"messages": [{"role": "user", "content": question}]}
        for index in range(2):
            key = 1000 * seed + 10 * number + index
            requests_made.append(
                Request(renderer.prompt(record), record.id, group=record.id, seed=key, metadata=dict(messages))
            )
    return requests_made


def check_reach(part: SamplerPart) -> None:
    """The sampler can be reached, or `reach` raises RunError."""
    try:
        part.reach()
    except RunError:
        return


def check_contract(part: SamplerPart) -> None:
    """One answer to each request, in the order of requests, of token ids that the model knows; none to no request."""
    sample, asked = sampler_of(part), requests()
    answers = sample(asked, GREEDY)
    if len(answers) != len(asked):
        raise Failed(f"{len(answers)} answers to {len(asked)} requests")
    for request, answer in zip(asked, answers, strict=True):
        if answer.record != request.record:
            raise Failed(f"the answer to {request.record} names {answer.record}: keep the order")
        _check_answer(answer, request)
    if list(sample([], GREEDY)):
        raise Failed("there are answers to an empty list of requests")


def _check_answer(answer: Trajectory, request: Request, forced: Sequence[int] = ()) -> None:
    config: Any = _language_model()[0].module.config
    vocabulary = config.vocab_size
    if not all(isinstance(token, int | numpy.integer) and 0 <= token < vocabulary for token in answer.ids):
        raise Failed(f"an answer holds {answer.ids!r}: token ids below {vocabulary}")
    if answer.finish not in ("stop", "length", "error"):
        raise Failed(f"an answer's finish is {answer.finish!r}: `stop`, `length` or `error`")
    if len(answer.ids) > LENGTH + len(forced):
        raise Failed(f"an answer has {len(answer.ids)} tokens, and `max_new_tokens` is {LENGTH}")
    if list(answer.ids[: len(forced)]) != list(forced):
        raise Failed("an answer does not begin with the tokens that were forced")
    if len(answer.logprobs) not in (0, len(answer.ids)):
        raise Failed(f"{len(answer.logprobs)} log-probabilities for {len(answer.ids)} tokens: one each, or none")
    if not all(math.isfinite(value) and value <= 1e-6 for value in answer.logprobs):
        raise Failed("a log-probability is above 0 or not finite")
    if answer.request is not None and answer.request != request:
        raise Failed("an answer names a request other than its own")


def check_order(part: SamplerPart) -> None:
    """In reverse order, and one by one, each request gets the same answer: the likeliest one, at temperature 0."""
    sample, asked = sampler_of(part), requests()
    together = [list(answer.ids) for answer in sample(asked, GREEDY)]
    backwards = [list(answer.ids) for answer in sample(asked[::-1], GREEDY)][::-1]
    alone = [list(sample([request], GREEDY)[0].ids) for request in asked]
    for what, answers in (("in another order", backwards), ("one by one", alone)):
        if answers != together:
            raise Failed(f"with the requests {what} an answer differs: does it depend on its neighbours?")


def check_seeds(part: SamplerPart) -> None:
    """At a temperature above 0 a request's seed alone decides its answer."""
    sample, asked = sampler_of(part), requests()

    def drawn(batch: list[Request]) -> list[list[int]]:
        return [list(answer.ids) for answer in sample(batch, DRAWN)]

    first, again, others = drawn(asked), drawn(asked[::-1]), drawn(requests(seed=1))
    if first != again[::-1]:
        raise Failed("the same seeds give other answers: is there a random call that no request's seed decides?")
    if first == others:
        raise Failed("other seeds give the same answers at temperature 1.5: is the seed read?")


def check_forced(part: SamplerPart) -> None:
    """An answer begins with the tokens that its request forces, which have log-probability 0."""
    tokenizer = _language_model()[0].tokenizer
    forced = tuple(tokenizer("ab", add_special_tokens=False)["input_ids"][:FORCED])
    asked = [replace(request, forced_ids=forced) for request in requests()]
    for request, answer in zip(asked, sampler_of(part)(asked, DRAWN), strict=True):
        _check_answer(answer, request, forced)
        if any(answer.logprobs[: len(forced)]):
            raise Failed("a forced token has a log-probability other than 0: it was not drawn")


def checks(part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of a sampler, in the order they are run; of one that cannot be reached only the first.

    Seeds and forced tokens are checked if the sampler is the model of the step itself (OWN): a server may support
    neither.
    """
    first: SamplerPart = variants(part)[0]
    yield "can be reached, or says so", lambda: check_reach(first)
    try:
        first.reach()
    except Exception:  # the first check reports it
        return
    yield "one answer per request, in their order", lambda: check_contract(first)
    yield "an answer does not depend on its neighbours", lambda: check_order(first)
    if first.OWN:
        yield "a request's seed decides its answer", lambda: check_seeds(first)
        yield "begins with the forced tokens", lambda: check_forced(first)
