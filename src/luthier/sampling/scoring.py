"""Log-probabilities of known continuations: choices after a prompt, and the targets of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from luthier.data.batches import collate, micro_batches
from luthier.models.kernels.folding import folded_in
from luthier.models.kernels.head import target_logprob
from luthier.models.policy import TokenPolicy
from luthier.sampling.agreement import errors_of, exact_for, is_rounding, logprobs_of, rounding_otherwise
from luthier.sampling.cache import common_prefix, open_cache, prefill, sampling_mode, space_of
from luthier.sampling.check import check
from luthier.sampling.native import check_prompts
from luthier.sampling.state import Forward, State, by_length
from luthier.types import Row

LOGIT_BYTES = 128 * 2**20  # float32 logits of the choices of one batch; one prompt alone may take more
FORWARD_POSITIONS = 4096  # of one forward over rows
COMPARED = 16  # positions of a row whose log-probabilities are compared with those of the row alone


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

    The model reads each prompt once, and the prompt's cache is copied for its choices. The prompt's last logits score
    the first token of every choice, so choices of one token need no second forward.

    Args:
        module: a causal LM; its mode is restored.
        prompts: token ids of each prompt, none empty.
        choices: for each prompt its choices, each a list of at least one token id.
        batch: prompts run together; None chooses by memory.
        progress: called with the number of prompts finished so far.
        records: record ids, for messages; default: the prompt's index.

    Returns:
        `logprobs[prompt][choice]` in nats, in the order of `prompts` and `choices`.

    Raises:
        DataError: a prompt is empty, or does not fit the model's context together with a choice.
        ModelError: the model's plain forward fails.
    """
    forward = Forward(module)
    longest = [len(prompt) + max(map(len, options)) - 1 for prompt, options in zip(prompts, choices, strict=True)]
    names = [str(index) for index in range(len(prompts))] if records is None else records
    check_prompts(prompts, longest, names, forward.context)
    # The longest first: texts of similar length share a batch, and a lack of memory shows at once.
    order = sorted(range(len(prompts)), key=lambda index: (-longest[index], index))
    scores: dict[int, list[float]] = {}
    with folded_in(module), sampling_mode(module):
        if prompts:
            check(forward, prompts, max(len(choice) for options in choices for choice in options))
        while order:
            size = batch or _prompts_that_fit(module, longest[order[0]], [choices[index] for index in order])
            chosen, order = order[:size], order[size:]
            logprobs = _score_choices(forward, [prompts[i] for i in chosen], [choices[i] for i in chosen])
            scores.update(zip(chosen, logprobs, strict=True))
            if progress is not None:
                progress(len(scores))
    return [scores[index] for index in range(len(prompts))]


def _prompts_that_fit(module: Any, length: int, choices: Sequence[Sequence[Sequence[int]]]) -> int:
    """How many of the first prompts to run together: their choices' cache and logits have to fit."""
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
    """Summed log-probabilities [prompt][choice] of one batch."""
    if not forward.way.cached:
        return [_reread(forward, prompt, options) for prompt, options in zip(prompts, choices, strict=True)]
    logits, states = _prefill(forward, prompts)
    first = logits.float().log_softmax(-1)
    flat: list[list[int]] = []
    prompt_of: list[int] = []
    for index, options in enumerate(choices):
        flat += [list(choice) for choice in options]
        prompt_of += [index] * len(options)
    totals = first[torch.tensor(prompt_of), torch.tensor([choice[0] for choice in flat])].double()
    # Padding goes on the right: a causal model does not let it change the tokens before it, so no mask is needed.
    # A model that cannot read rows of unequal length gets the choices of each length by themselves.
    groups = [[*range(len(flat))]] if forward.way.ragged else by_length(map(len, flat))
    for group in groups:
        width = max(len(flat[index]) for index in group)
        if width == 1:
            continue
        tokens = torch.tensor([flat[i] + [0] * (width - len(flat[i])) for i in group], device=forward.device)
        rows = open_cache(forward, len(group), max(map(len, prompts)) + width)
        if not rows.can_add and group is not groups[0]:
            states = _prefill(forward, prompts)[1]  # those of a cache that cannot be copied are used up
        rows.add([states[prompt_of[index]] for index in group])
        rest = _rest(rows.run(tokens[:, :-1], last=False), tokens[:, 1:], [flat[index] for index in group])
        totals[torch.tensor(group, device=totals.device)] += rest
    remaining = iter(totals.tolist())
    return [list(islice(remaining, len(options))) for options in choices]


def _reread(forward: Forward, prompt: Sequence[int], choices: Sequence[Sequence[int]]) -> list[float]:
    """The same for one prompt, from one plain forward over the prompt and each choice."""
    totals = []
    for choice in choices:
        ids = torch.tensor([[*prompt, *choice]], device=forward.device)
        logits = forward.plain(ids, range(len(prompt) - 1, ids.shape[1] - 1))
        totals.append(float(_rest(logits, ids[:, len(prompt) :], [[0, *choice]])))
    return totals


def _prefill(forward: Forward, prompts: list[Sequence[int]]) -> tuple[Tensor, list[State]]:
    """Last logits [prompts,V] and states of the prompts; their common prefix is run once."""
    shared = common_prefix(prompts) if forward.way.prefix and open_cache(forward, 1).can_add else 0
    before = prefill(forward, [prompts[0][:shared]])[1][0] if shared else None
    return prefill(forward, [prompt[shared:] for prompt in prompts], before)


def _rest(logits: Tensor, targets: Tensor, flat: Sequence[list[int]]) -> Tensor:
    """Summed log-probabilities of each choice's tokens but the first: logits [C,T,V], targets [C,T] → [C]."""
    logits = logits.float()
    logprobs = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
    lengths = torch.tensor([len(choice) - 1 for choice in flat], device=logits.device)
    inside = torch.arange(targets.shape[1], device=logits.device) < lengths[:, None]
    return torch.where(inside, logprobs, 0.0).double().sum(-1)


def sequence_logprobs(
    module: Any, rows: Sequence[Row], *, progress: Callable[[int], None] | None = None
) -> list[tuple[float, int]]:
    """The summed log-probability of each row's targets, and the number of targets.

    Weights only mark targets here; they do not scale. The logits [B,T,V] of a whole batch are never built.

    Args:
        module: a causal LM; its mode is restored.
        rows: tokenised records with a `weights` stream.
        progress: called with the number of rows finished so far.

    Returns:
        (sum of log-probabilities in nats, number of targets) per row, in order.

    Raises:
        ModelError: the model's logits or its reading of rows in batches are not understood.
    """
    forward = Forward(module)
    sums_and_counts: dict[str, tuple[float, int]] = {}
    with folded_in(module), sampling_mode(module):
        batched = bool(rows) and _agrees_with_rows_alone(forward, rows)
        for micro_batch in micro_batches(rows, FORWARD_POSITIONS, "padded"):
            sums = _batch_sums(forward, micro_batch) if batched else [_row_sum(forward, row) for row in micro_batch]
            for row, total in zip(micro_batch, sums, strict=True):
                sums_and_counts[row.id] = (total, row.targets)
            if progress is not None:
                progress(len(sums_and_counts))
    return [sums_and_counts[row.id] for row in rows]


def _batch_sums(forward: Forward, rows: Sequence[Row]) -> list[float]:
    """Summed log-probabilities of the targets of each row, from one padded forward."""
    policy = TokenPolicy(forward.module)
    batch = collate(rows).to(forward.device)
    row_of, columns = batch.targets()
    targets, head = batch.ids[row_of, columns], policy.head
    hidden = policy.hidden(batch)
    # `head.map` computes the logits of a few positions at a time.
    logprobs = head.map(hidden, lambda part, logits: target_logprob(logits, targets[part]))
    # float64, so that rounding in the sum of a long row stays far below the rounding of the logits.
    sums = torch.zeros(len(rows), dtype=torch.float64, device=forward.device)
    return sums.index_add_(0, row_of, logprobs.double()).tolist()


def _row_sum(forward: Forward, row: Row) -> float:
    """The same of one row, from the model's plain forward over it alone."""
    batch = collate([row]).to(forward.device)
    _, columns = batch.targets()
    if not len(columns):
        return 0.0
    logits = forward.plain(batch.ids, [column - 1 for column in columns.tolist()])[0]
    return float(target_logprob(logits.float(), batch.ids[0, columns]).double().sum())


def _agrees_with_rows_alone(forward: Forward, rows: Sequence[Row]) -> bool:
    """Whether the longest and the shortest row have together the log-probabilities that each has alone.

    Some models count positions otherwise than we do, see padding, or change with the length of the longest row; some
    change their logits behind the output embedding in a way that `Head` does not know.
    """
    pair = [max(rows, key=len), min(rows, key=len)]
    policy, batch = TokenPolicy(forward.module), collate(pair).to(forward.device)
    columns = torch.stack([torch.linspace(0, len(row) - 1, COMPARED).long() for row in pair])

    def alone() -> Tensor:
        logits = []
        for row, chosen in zip(pair, columns, strict=True):
            positions, index = chosen.unique(return_inverse=True)
            ids = torch.tensor([row.ids.tolist()], device=forward.device)
            logits.append(forward.plain(ids, positions.tolist())[0][index])
        return torch.stack(logits)

    def noise() -> Tensor:
        with rounding_otherwise(forward.module, torch.finfo(forward.dtype).eps):
            return errors_of(logprobs_of(alone()), wanted)

    expected = alone()
    wanted, exact = logprobs_of(expected), exact_for(expected, forward.dtype)
    try:
        hidden = policy.input_of_head({"input_ids": batch.ids}, batch.attention_mask, batch.position_of)
        picked = hidden[torch.arange(2, device=hidden.device)[:, None], columns.to(hidden.device)]
        logits = policy.head.logits(picked.flatten(0, 1)).view(2, COMPARED, -1)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return False
    return all(is_rounding(row, exact, cache(noise)) for row in errors_of(logprobs_of(logits), wanted))
