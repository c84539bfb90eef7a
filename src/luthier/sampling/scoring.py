"""Log-probabilities of given continuations: choices after a prompt, and the targets of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.data.batches import collate, micro_batches
from luthier.models.kernels.folding import folded_in
from luthier.models.kernels.head import target_logprob
from luthier.models.policy import TokenPolicy
from luthier.sampling.cache import common_prefix, open_rows, prefill, sampling_mode, space_of
from luthier.sampling.native import check_prompts
from luthier.sampling.state import Forward, State
from luthier.types import Row

LOGIT_BYTES = 128 * 2**20  # float32 logits of the choices of one batch; one prompt alone may take more
TOKENS = 4096  # positions of one forward over rows


def choice_logprobs(
    module: Any,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    *,
    batch: int | None = None,
    progress: Callable[[int], None] | None = None,
    records: Sequence[str] | None = None,
) -> list[list[float]]:
    """Summed log-probability of each choice's tokens after its prompt.

    Each prompt is run once and its cache repeated for its choices; the first token of every choice is
    read from the prompt's own last logits, so choices of one token need no second forward.

    Args:
        module: a causal LM with a key-value cache; its mode is restored.
        prompts: token ids of each prompt, none empty.
        choices: for each prompt its choices, each a list of at least one token id.
        batch: prompts run together; None chooses by memory.
        progress: called with the number of prompts finished so far.
        records: record ids, for messages; default: the prompt's index.

    Returns:
        `logprobs[prompt][choice]`, natural logarithm, in the order given.

    Raises:
        DataError: a prompt is empty, or does not fit the model's context together with a choice.
        ModelError: the model has no key-value cache.
    """
    forward = Forward(module)
    longest = [len(prompt) + max(map(len, options)) - 1 for prompt, options in zip(prompts, choices, strict=True)]
    names = [str(index) for index in range(len(prompts))] if records is None else records
    check_prompts(prompts, longest, names, forward.context)
    order = sorted(range(len(prompts)), key=lambda index: (-longest[index], index))
    found: dict[int, list[float]] = {}
    with folded_in(module), sampling_mode(module):
        while order:
            size = batch or _prompts_that_fit(module, longest[order[0]], [choices[index] for index in order])
            chosen, order = order[:size], order[size:]
            scores = _score_choices(forward, [prompts[i] for i in chosen], [choices[i] for i in chosen])
            found.update(zip(chosen, scores, strict=True))
            if progress is not None:
                progress(len(found))
    return [found[index] for index in range(len(prompts))]


def _prompts_that_fit(module: Any, length: int, choices: Sequence[Sequence[Sequence[int]]]) -> int:
    """How many prompts to run together, by the cache and the logits of their choices."""
    most = space_of(module).rows_of(length)
    vocabulary = module.get_output_embeddings().weight.shape[0]
    for size in range(1, min(most, len(choices)) + 1):
        rows = sum(len(options) for options in choices[:size])
        width = max(len(choice) for options in choices[:size] for choice in options)
        if size > 1 and (rows > most or rows * (width - 1) * vocabulary * 4 > LOGIT_BYTES):
            return size - 1
    return most


def _score_choices(
    forward: Forward, prompts: list[Sequence[int]], choices: list[Sequence[Sequence[int]]]
) -> list[list[float]]:
    logits, states = _read(forward, prompts)
    first = logits.float().log_softmax(-1)
    owner = torch.tensor([place for place, options in enumerate(choices) for _ in options], device=forward.device)
    flat = [list(choice) for options in choices for choice in options]
    width = max(map(len, flat))
    tokens = torch.tensor([choice + [0] * (width - len(choice)) for choice in flat], device=forward.device)
    totals = first[owner, tokens[:, 0]].double()
    if width > 1:
        rows = open_rows(forward, len(flat), max(map(len, prompts)) + width)
        rows.enter([states[place] for place in owner.tolist()])
        totals += _rest(rows.run(tokens[:, :-1], last=False), tokens[:, 1:], flat)
    values = iter(totals.tolist())
    return [[next(values) for _ in options] for options in choices]


def _read(forward: Forward, prompts: list[Sequence[int]]) -> tuple[Tensor, list[State]]:
    """`prefill`, where what all prompts begin with is run once."""
    shared = common_prefix(prompts) if open_rows(forward, 1).plain else 0
    before = prefill(forward, [prompts[0][:shared]])[1][0] if shared else None
    return prefill(forward, [prompt[shared:] for prompt in prompts], before)


def _rest(logits: Tensor, targets: Tensor, flat: list[list[int]]) -> Tensor:
    """Sum of the log-probabilities after the first token: logits [C,T,V], targets [C,T] → [C]."""
    logits = logits.float()
    values = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
    lengths = torch.tensor([len(choice) - 1 for choice in flat], device=logits.device)
    inside = torch.arange(targets.shape[1], device=logits.device) < lengths[:, None]
    return torch.where(inside, values, 0.0).double().sum(-1)


def sequence_logprobs(
    module: Any, rows: Sequence[Row], *, progress: Callable[[int], None] | None = None
) -> list[tuple[float, int]]:
    """For each row the summed log-probability of its targets, and how many they are.

    Weights only mark targets here; they do not scale. Full logits are never built.

    Args:
        module: a causal LM; its mode is restored.
        rows: tokenised records with a `weights` stream.
        progress: called with the number of rows finished so far.

    Returns:
        (sum of natural log-probabilities, number of targets) per row, in order.
    """
    policy = TokenPolicy(module)
    device = module.get_input_embeddings().weight.device
    found: dict[str, tuple[float, int]] = {}
    with folded_in(module), sampling_mode(module):
        for piece in micro_batches(rows, TOKENS, "padded"):
            batch = collate(piece).to(device)
            at, columns = batch.targets()
            targets, head = batch.ids[at, columns], policy.head
            hidden = policy.hidden(batch)
            values = head.map(hidden, lambda part, logits, targets=targets: target_logprob(logits, targets[part]))
            sums = torch.zeros(len(piece), dtype=torch.float64, device=device).index_add_(0, at, values.double())
            for row, total in zip(piece, sums.tolist(), strict=True):
                found[row.id] = (total, row.targets)
            if progress is not None:
                progress(len(found))
    return [found[row.id] for row in rows]
