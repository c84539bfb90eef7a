"""Whether a way of reading texts gives a model's own logits, tried on the texts of the session that will use it.

What is right is the plain forward of one text alone: `module(input_ids)`, without cache, mask or positions.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models.config import text_config
from luthier.sampling._decoder import decoder_of
from luthier.sampling._shared_prefixes import SharedPrefixes
from luthier.sampling.agreement import AT_ONCE, STEPS, TrialLogits, TrialTexts, Truth, is_rounding, split_tokens
from luthier.sampling.cache import Slots, common_prefix, open_cache, prefill, sampling_mode
from luthier.sampling.state import WAYS, FixedRowsCache, Forward, Way

MOST_TEXTS = 8  # whose tokens continue the texts of a trial


@dataclass(frozen=True)
class CheckedWay:
    """What a model's texts of up to `length` positions can be read by: a way, and whether our own decoder agrees."""

    way: Way
    decoder: bool
    length: int


CHECKED: WeakKeyDictionary[nn.Module, tuple[Any, list[CheckedWay]]] = WeakKeyDictionary()
"""Models that were checked: what they were made of at that time, and the ways for each length."""


def check(forward: Forward, texts: Sequence[Sequence[int]], new: int) -> CheckedWay:
    """Set `forward.way` to the fastest way whose logits are those of the plain forward. Call it in sampling mode.

    The longest and the shortest text are read together and continued to the length that the session may reach. A
    model is checked once for a length, and again when it is made of other modules.

    Args:
        forward: the model.
        texts: token ids of what the session will read, none empty.
        new: the most tokens that continue a text.

    Raises:
        ModelError: the model's plain forward fails or is not causal, so no way is left.
    """
    longest = max(map(len, texts))
    length = min(longest + new, max(forward.context, longest))
    made_of = _made_of(forward)
    before, checked = CHECKED.get(forward.inner, (None, []))
    if before != made_of:
        checked = []
    # What fails at a length may work for texts half as long; what works there works for shorter texts too.
    known = [c for c in checked if length <= c.length and (c.way == Way() or c.length < 2 * length)]
    if known:
        chosen = min(known, key=lambda checked_way: checked_way.length)
    else:
        chosen = _checked(forward, _trials(forward, texts, length), length)
        CHECKED[forward.inner] = made_of, [*checked, chosen]
    forward.way = chosen.way
    return chosen


def refuse_unreadable(module: Any, text: Sequence[int]) -> None:
    """Refuse a model that cannot continue this text in any way, before work is put into it.

    Raises:
        ModelError: the model's plain forward fails, or is not causal.
    """
    forward = Forward(module)
    with sampling_mode(module):
        Truth(forward, _trials(forward, [text], len(text) + 1)[0]).refuse_foresight()


def _made_of(forward: Forward) -> Any:
    """What a check depends on besides lengths: a user may exchange a module between two calls, or add a hook."""
    modules = []
    for name, module in forward.module.named_modules():
        intercepted = len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module)
        modules.append((name, type(module), intercepted))
    return forward.dtype, getattr(forward.inner.config, "_attn_implementation", None), tuple(modules)


def _checked(forward: Forward, trials: Sequence[TrialTexts], length: int) -> CheckedWay:
    """Try the ways from the fastest on; before texts are read again for every token, up to coarser rounding too."""
    truths = [Truth(forward, trial) for trial in trials]
    own = torch.finfo(forward.dtype).eps
    rough = max(2 * own, torch.finfo(torch.bfloat16).eps)
    cached = [way for way in WAYS if way.cached and forward.cached and (way.positions or forward.positions)]
    if length >= forward.context:
        cached = [way for way in cached if not _outgrows_context(forward, way)]
    # The steps of some recurrent layers compute slightly otherwise than their plain forward.
    tries = [(way, own) for way in cached] + [(way, rough) for way in cached]
    for way, resolution in [*tries, *((way, own) for way in WAYS if not way.cached)]:
        forward.way = way
        if not way.cached:
            truths[0].refuse_foresight()
        if way == WAYS[-1] or all(_passes(_continued, truth, resolution) for truth in truths):
            # Our decoder reads a prefix once for several texts, so it needs a model that can.
            fast = way == Way() and resolution == own and _passes(_decoded, truths[0], own)
            _warn(forward, way, rough=resolution != own)
            return CheckedWay(way, fast, length)
    raise AssertionError("The last way is always taken.")


def _outgrows_context(forward: Forward, way: Way) -> bool:
    """Whether the columns of a cache may be more than the model reads, where a short text outlives a long one."""
    forward.way = way
    return way.ragged and isinstance(open_cache(forward, 1), FixedRowsCache)


def _passes(read: Callable[[Forward, TrialTexts], Iterator[TrialLogits]], truth: Truth, resolution: float) -> bool:
    """Whether all that was read agrees; what raises, in whatever way, is not taken."""
    errors: dict[str, list[Tensor]] = {}

    def noise() -> Tensor:
        return truth.noise(resolution)

    try:
        for reading in read(truth.forward, truth.trial):
            # One text alone gives too few errors to tell kinds apart.
            parts = errors.setdefault(reading.kind if len(truth.trial.texts) > 1 else "", [])
            parts.append(truth.errors(reading))
            if not is_rounding(parts[-1], truth.exact, noise, largest_only=True):
                return False
        return all(is_rounding(torch.cat(parts), truth.exact, noise) for parts in errors.values())
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return False


def _warn(forward: Forward, way: Way, rough: bool) -> None:
    name = type(forward.inner).__name__
    if not way.cached:
        warnings.warn(
            f"{name} keeps no cache that gives its own logits for these texts, so whole texts are read again for every"
            " token: generation is slow.",
            stacklevel=2,
        )
    elif rough:
        warnings.warn(
            f"With its cache {name} differs from its own forward by more than rounding in {forward.dtype} explains, but"
            " by no more than twice that or the rounding of bfloat16; the cache is used.",
            stacklevel=2,
        )


def _trials(forward: Forward, texts: Sequence[Sequence[int]], length: int) -> list[TrialTexts]:
    """What `check` tries: texts of unequal length beside each other, then the shortest up to the full length.

    The first trial holds the longest text, the shortest, and one as long as the shortest. The second begins with a
    short text, so that a model that reads long texts in another way is noticed wherever that begins.
    """
    room = max(forward.context, max(map(len, texts)))
    longest = list(max(texts, key=len))
    longest = longest[: max(1, min(len(longest), room - AT_ONCE - STEPS))]
    shortest = list(min(texts, key=len))[: len(longest)]
    if len(shortest) == len(longest):
        shortest = shortest[: max(1, len(shortest) - max(1, len(shortest) // 3))]
    prefix = common_prefix([longest, shortest]) or len(shortest) // 2
    draws = random.Random(0)
    pool = [token for text in texts[:MOST_TEXTS] for token in text]
    shortest[:prefix] = longest[:prefix]
    twin = [*shortest[:prefix], *draws.choices(pool, k=len(shortest) - prefix)]
    pad = getattr(text_config(forward.inner), "pad_token_id", None)
    total = min(room, max(length, len(longest) + AT_ONCE + STEPS))

    def continued(prompt: list[int], more: int) -> list[int]:
        tokens = draws.choices(pool, k=more)
        # Some models count positions by tokens that are no padding.
        tokens[1:2] = tokens[1:2] if pad is None or not 0 <= pad < forward.vocabulary else [pad] * len(tokens[1:2])
        return [*prompt, *tokens]

    prompts = longest, shortest, twin
    beside = tuple(continued(prompt, max(1, total - len(longest))) for prompt in prompts)
    trials = [TrialTexts(beside, (len(longest), len(shortest), len(twin)), prefix)]
    if len(beside[1]) < total:
        trials.append(TrialTexts((continued(shortest, total - len(shortest)),), (len(shortest),), 0))
    return trials


def _continued(forward: Forward, trial: TrialTexts) -> Iterator[TrialLogits]:
    """Read the trial's texts in the way of `forward`: prompts, then tokens at once, then single tokens."""
    # Two texts of equal length show what rows do to each other; where rows may be ragged, the others show it.
    rows = list(range(min(len(trial.texts), 2 if forward.way.ragged else 3)))
    if not forward.way.cached:
        # Nothing is continued: what has to agree is that texts of equal length are read together as alone.
        logits = prefill(forward, [trial.texts[row] for row in rows])[0]
        yield TrialLogits("at once", rows, trial.more, logits[:, None])
        return
    prompts = [trial.texts[row][: trial.prompts[row]] for row in rows]
    logits, states = prefill(forward, prompts)
    yield TrialLogits("at once", rows, 0, logits[:, None])
    cache, direct = open_cache(forward, 1), len(rows)
    trial.states[0] = states[:2]
    if forward.way.prefix and trial.prefix and cache.can_add:
        # The shorter of two texts that continue one prefix is padded between the two.
        before = prefill(forward, [prompts[0][: trial.prefix]])[1][0]
        logits, shared = prefill(forward, [prompt[trial.prefix :] for prompt in prompts], before)
        yield TrialLogits("prefix", rows, 0, logits[:, None])
        rows, states = [*rows, 1], [*states, shared[1]]
    cache.add(states)
    tokens = torch.tensor([trial.texts[row][trial.prompts[row] :] for row in rows], device=forward.device)

    def readings(kind: str, offset: int, logits: Tensor) -> Iterator[TrialLogits]:
        yield TrialLogits(kind, rows[:direct], offset, logits[:direct])
        if direct < len(rows):
            yield TrialLogits("prefix", rows[direct:], offset, logits[direct:])

    at_once, steps = split_tokens(trial.more)
    first = trial.more - at_once - steps
    if first:
        yield from readings("at once", first, cache.run(tokens[:, :first]))
    if at_once:
        yield from readings("at once", first + 1, cache.run(tokens[:, first : first + at_once], last=False))
    if isinstance(cache, Slots):
        trial.states[first + at_once] = [cache.state(row) for row in rows[:2]]
    for column in range(first + at_once, trial.more):
        yield from readings("steps", column + 1, cache.advance(tokens[:, column])[:, None])


def _decoded(forward: Forward, trial: TrialTexts) -> Iterator[TrialLogits]:
    """Single tokens behind the trial's prompts, and behind all but its last tokens, by our own decoder.

    Raises:
        ModelError: the model has another structure.
    """
    decoder = decoder_of(forward, torch.tensor(trial.texts[0]))
    if decoder is None:
        raise ModelError("The model has another structure than `Decoder`.")
    _, steps = split_tokens(trial.more)
    for offset, states in trial.states.items():
        slots = Slots(forward, 3)
        slots.decoder, slots.prefixes = decoder, SharedPrefixes()
        # The first text twice: one prefix of two rows, and one of one row.
        rows = [0, 0, 1]
        slots.add([states[row] for row in rows])
        for step in range(min(steps, trial.more - offset)):
            tokens = [trial.texts[row][trial.prompts[row] + offset + step] for row in rows]
            logits = slots.advance(torch.tensor(tokens, device=forward.device))
            yield TrialLogits("steps", rows, offset + step + 1, logits[:, None])
