"""Whether a way of reading texts gives a model's own logits, tried on the texts of the session that will use it.

What is right is the plain forward of one text alone: `module(input_ids)`, without cache, mask or positions.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models.config import text_config
from luthier.sampling._decoder import decoder_of
from luthier.sampling._shared_prefixes import SharedPrefixes
from luthier.sampling.cache import Slots, common_prefix, open_cache, prefill, sampling_mode
from luthier.sampling.state import WAYS, Forward, State, Way

AT_ONCE, STEPS = 6, 3
"""Tokens of a trial whose logits are computed at once, and by steps of one token."""
EXACT = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Errors of log-probabilities that pass at once, relative to the largest logit; shorter types: their resolution."""
ROUNDING = 2.0
"""An error is rounding up to this multiple of what the model's own rounding does (`Truth.noise`)."""
QUARTILE = 0.75
MOST_TEXTS = 8  # whose tokens continue the texts of a trial


@dataclass(frozen=True)
class Verdict:
    """What a model's texts of up to `length` positions can be read by: a way, and whether our own decoder agrees."""

    way: Way
    decoder: bool
    length: int


CHECKED: WeakKeyDictionary[nn.Module, tuple[Any, list[Verdict]]] = WeakKeyDictionary()
"""Models that were checked: what they were made of at that time, and the verdicts."""


def check(forward: Forward, texts: Sequence[Sequence[int]], new: int) -> Verdict:
    """Set `forward.way` to the fastest way whose logits are those of the plain forward. Call it in sampling mode.

    The longest and the shortest text are read together and continued to the length that the session may reach. A
    model is checked once for a length, and again when it is made of other modules.

    Args:
        forward: the model.
        texts: token ids of what the session will read, none empty.
        new: the most tokens that continue a text.

    Raises:
        ModelError: the model's plain forward fails, so no way is left.
    """
    longest = max(map(len, texts))
    length = min(longest + new, max(forward.context, longest))
    made_of = _made_of(forward)
    before, verdicts = CHECKED.get(forward.inner, (None, []))
    if before != made_of:
        verdicts = []
    # What fails at a length may work for texts half as long; what works there works for shorter texts too.
    known = [v for v in verdicts if length <= v.length and (v.way == Way() or v.length < 2 * length)]
    if known:
        verdict = min(known, key=lambda verdict: verdict.length)
    else:
        verdict = _verdict(forward, _trials(forward, texts, length), length)
        CHECKED[forward.inner] = made_of, [*verdicts, verdict]
    forward.way = verdict.way
    return verdict


def refuse_unreadable(module: Any, text: Sequence[int]) -> None:
    """Refuse a model that cannot continue this text in any way, before work is put into it.

    Raises:
        ModelError: the model's plain forward fails.
    """
    forward = Forward(module)
    with sampling_mode(module):
        Truth(forward, _trials(forward, [text], len(text) + 1)[0])


def _made_of(forward: Forward) -> Any:
    """What a verdict depends on besides lengths: a user may exchange a module between two calls, or add a hook."""
    modules = []
    for name, module in forward.module.named_modules():
        intercepted = len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module)
        modules.append((name, type(module), intercepted))
    return forward.dtype, getattr(forward.inner.config, "_attn_implementation", None), tuple(modules)


def _verdict(forward: Forward, trials: Sequence[Trial], length: int) -> Verdict:
    """Try the ways from the fastest on; those that keep a cache also up to the rounding of bfloat16."""
    truths = [Truth(forward, trial) for trial in trials]
    own, rough = torch.finfo(forward.dtype).eps, torch.finfo(torch.bfloat16).eps
    cached = [way for way in WAYS if way.cached and forward.cached and (way.positions or forward.positions)]
    # The steps of some recurrent layers compute slightly otherwise than their plain forward.
    tries = [(way, own) for way in cached] + [(way, rough) for way in cached if own < rough]
    for way, resolution in [*tries, *((way, own) for way in WAYS if not way.cached)]:
        forward.way = way
        if not way.cached:
            truths[0].refuse_foresight()
        if way == WAYS[-1] or all(_passes(_continued, truth, resolution) for truth in truths):
            # Our decoder reads a prefix once for several texts, so it needs a model that can.
            fast = way == Way() and resolution == own and _passes(_decoded, truths[0], own)
            _warn(forward, way, rough=resolution != own)
            return Verdict(way, fast, length)
    raise AssertionError("The last way is always taken.")


def _passes(read: Callable[[Forward, Trial], Iterator[Reading]], truth: Truth, resolution: float) -> bool:
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
            f"With its cache {name} differs from its own forward by more than rounding in {forward.dtype}, though by"
            " less than rounding in bfloat16; the cache is used.",
            stacklevel=2,
        )


@dataclass(frozen=True)
class Trial:
    """Texts that are read and continued: what the session reads, its longest first, and tokens of it behind that.

    Attributes:
        texts: token ids; each is its prompt and as many tokens behind it as the others have. All share `prefix` tokens.
        prompts: length of the prompt of each.
        prefix: length of what all texts begin with.
        states: what `Slots` held of the first two texts, by the number of tokens behind their prompts.
    """

    texts: tuple[list[int], ...]
    prompts: tuple[int, ...]
    prefix: int
    states: dict[int, list[State]] = field(default_factory=dict)

    @property
    def more(self) -> int:
        """Tokens behind each prompt."""
        return len(self.texts[0]) - self.prompts[0]


@dataclass(frozen=True)
class Reading:
    """Logits [rows,P,V] behind `offset`, ... `offset` + P - 1 tokens after the prompts of the trial's texts `rows`.

    `kind` says how they were read; errors are judged by kind.
    """

    kind: str
    rows: Sequence[int]
    offset: int
    logits: Tensor


def _trials(forward: Forward, texts: Sequence[Sequence[int]], length: int) -> list[Trial]:
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
    trials = [Trial(beside, (len(longest), len(shortest), len(twin)), prefix)]
    if len(beside[1]) < total:
        trials.append(Trial((continued(shortest, total - len(shortest)),), (len(shortest),), 0))
    return trials


def _continued(forward: Forward, trial: Trial) -> Iterator[Reading]:
    """Read the trial's texts in the way of `forward`: prompts, then tokens at once, then single tokens."""
    # Two texts of equal length show what rows do to each other; where rows may be ragged, the others show it.
    rows = list(range(min(len(trial.texts), 2 if forward.way.ragged else 3)))
    if not forward.way.cached:
        # Nothing is continued: what has to agree is that texts of equal length are read together as alone.
        logits = prefill(forward, [trial.texts[row] for row in rows])[0]
        yield Reading("at once", rows, trial.more, logits[:, None])
        return
    prompts = [trial.texts[row][: trial.prompts[row]] for row in rows]
    logits, states = prefill(forward, prompts)
    yield Reading("at once", rows, 0, logits[:, None])
    cache, direct = open_cache(forward, 1), len(rows)
    trial.states[0] = states[:2]
    if forward.way.prefix and trial.prefix and cache.can_add:
        # The shorter of two texts that continue one prefix is padded between the two.
        before = prefill(forward, [prompts[0][: trial.prefix]])[1][0]
        logits, shared = prefill(forward, [prompt[trial.prefix :] for prompt in prompts], before)
        yield Reading("prefix", rows, 0, logits[:, None])
        rows, states = [*rows, 1], [*states, shared[1]]
    cache.add(states)
    tokens = torch.tensor([trial.texts[row][trial.prompts[row] :] for row in rows], device=forward.device)

    def readings(kind: str, offset: int, logits: Tensor) -> Iterator[Reading]:
        yield Reading(kind, rows[:direct], offset, logits[:direct])
        if direct < len(rows):
            yield Reading("prefix", rows[direct:], offset, logits[direct:])

    at_once, steps = _split(trial.more)
    first = trial.more - at_once - steps
    if first:
        yield from readings("at once", first, cache.run(tokens[:, :first]))
    if at_once:
        yield from readings("at once", first + 1, cache.run(tokens[:, first : first + at_once], last=False))
    if isinstance(cache, Slots):
        trial.states[first + at_once] = [cache.state(row) for row in rows[:2]]
    for column in range(first + at_once, trial.more):
        yield from readings("steps", column + 1, cache.advance(tokens[:, column])[:, None])


def _split(more: int) -> tuple[int, int]:
    """How many of the tokens behind a prompt are read at once with all logits, and how many singly."""
    steps = min(STEPS, more)
    return min(AT_ONCE, more - steps), steps


def _decoded(forward: Forward, trial: Trial) -> Iterator[Reading]:
    """Single tokens behind the trial's prompts, and behind all but its last tokens, by our own decoder.

    Raises:
        ModelError: the model has another structure.
    """
    decoder = decoder_of(forward, torch.tensor(trial.texts[0]))
    if decoder is None:
        raise ModelError("The model has another structure than `Decoder`.")
    _, steps = _split(trial.more)
    for offset, states in trial.states.items():
        slots = Slots(forward, 3)
        slots.decoder, slots.prefixes = decoder, SharedPrefixes()
        # The first text twice: one prefix of two rows, and one of one row.
        rows = [0, 0, 1]
        slots.add([states[row] for row in rows])
        for step in range(min(steps, trial.more - offset)):
            tokens = [trial.texts[row][trial.prompts[row] + offset + step] for row in rows]
            logits = slots.advance(torch.tensor(tokens, device=forward.device))
            yield Reading("steps", rows, offset + step + 1, logits[:, None])


class Truth:
    """The log-probabilities of a trial's texts by the model's plain forward, each text alone.

    Raises:
        ModelError: the plain forward fails.
    """

    def __init__(self, forward: Forward, trial: Trial):
        self.forward, self.trial = forward, trial
        at_once, steps = _split(trial.more)
        first = trial.more - at_once - steps
        # Behind the prompt and its first tokens, and everything from the tokens on that are read at once.
        self.offsets = sorted({*range(min(steps, trial.more) + 1), *range(first, trial.more + 1)})
        self._logprobs: dict[int, Tensor] = {}
        self._noise: dict[float, Tensor] = {}
        try:
            logits = self._logits(0)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ModelError(
                f"{type(forward.inner).__name__} cannot generate: reading {len(trial.texts[0])} tokens without a cache"
                f" failed ({type(error).__name__}: {str(error)[:200]}).",
                "Choose metrics that read no answers of the model, or another model.",
            ) from error
        self._logprobs[0], self.exact = logprobs_of(logits), exact_for(logits, forward.dtype)

    def _logits(self, text: int) -> Tensor:
        """Logits [offsets,V] of one text."""
        ids = torch.tensor([self.trial.texts[text]], device=self.forward.device)
        prompt = self.trial.prompts[text]
        return self.forward.plain(ids, [prompt - 1 + offset for offset in self.offsets])[0]

    def refuse_foresight(self) -> None:
        """Raise ModelError if tokens move the logits before them: no next token is then the model's own."""
        text, last = self.trial.texts[0], len(self.trial.texts[0]) - 1
        other = next((token for token in self.trial.texts[0] if token != text[-1]), text[-1])
        changed = torch.tensor([[*text[:-1], other]], device=self.forward.device)
        positions = [self.trial.prompts[0] - 1 + offset for offset in self.offsets]
        errors = errors_of(logprobs_of(self.forward.plain(changed, positions)[0]), self.logprobs(0))
        before = errors[[position < last for position in positions]]
        if not is_rounding(before, self.exact, lambda: self.noise(torch.finfo(self.forward.dtype).eps)):
            raise ModelError(
                f"{type(self.forward.inner).__name__} cannot generate: it reads the tokens behind a position too.",
                "Use a causal language model; a config with `is_decoder: true` makes some encoders one.",
            )

    def logprobs(self, text: int) -> Tensor:
        """Log-probabilities [offsets,V] of one text."""
        if text not in self._logprobs:
            self._logprobs[text] = logprobs_of(self._logits(text))
        return self._logprobs[text]

    def noise(self, resolution: float) -> Tensor:
        """Errors [n] of the plain forward itself when all layers round their outputs otherwise."""
        if resolution not in self._noise:
            errors = []
            with rounding_otherwise(self.forward.module, resolution):
                for text, logprobs in self._logprobs.items():
                    errors.append(errors_of(logprobs_of(self._logits(text)), logprobs))
            self._noise[resolution] = torch.cat(errors)
        return self._noise[resolution]

    def errors(self, reading: Reading) -> Tensor:
        """The errors [rows·P] of what was read."""
        first = self.offsets.index(reading.offset)
        # Offsets from a reading's first on are neighbours.
        columns = slice(first, first + reading.logits.shape[1])
        logprobs = torch.stack([self.logprobs(row)[columns] for row in reading.rows])
        return errors_of(logprobs_of(reading.logits), logprobs).flatten()


def is_rounding(errors: Tensor, exact: float, noise: Callable[[], Tensor], largest_only: bool = False) -> bool:
    """Whether errors come from rounding alone.

    Errors up to `exact` do. Beyond that they are compared with `noise`: the upper quartile with the quartile of the
    noise, so that an error of a quarter of the positions is noticed however small, and the largest with the largest,
    so that a router that sends one token to another expert passes only if rounding alone does that to this model.

    Args:
        errors: largest difference of log-probabilities of each position, [n]; NaN is no rounding.
        exact: see above.
        noise: computes such differences between two forwards that round otherwise, of any shape.
        largest_only: compare the largest alone, where there are too few for quartiles.
    """
    if float(errors.max()) <= exact:
        return True
    if not bool(errors.isfinite().all()):
        return False
    pairs = [(errors.max(), noise().max())]
    if not largest_only:
        pairs.append((errors.quantile(QUARTILE), noise().flatten().quantile(QUARTILE)))
    return all(float(error) <= max(exact, ROUNDING * float(usual)) for error, usual in pairs)


def exact_for(logits: Tensor, dtype: torch.dtype) -> float:
    """Errors of log-probabilities that pass at once, for a model in `dtype` with such logits."""
    finite = logits[logits.isfinite()]
    return EXACT.get(dtype, torch.finfo(dtype).eps) * float(finite.abs().max()) if len(finite) else 0.0


def logprobs_of(logits: Tensor) -> Tensor:
    """Log-probabilities in float32; a token that does not exist may have a logit of -inf."""
    return logits.float().log_softmax(-1).clamp(min=-1e4)


def errors_of(logprobs: Tensor, others: Tensor) -> Tensor:
    """The largest difference of each position, [...,V] → [...]."""
    return (logprobs - others).abs().amax(-1)


@contextmanager
def rounding_otherwise(module: nn.Module, resolution: float) -> Iterator[None]:
    """Move each output feature of all layers without children up or down by this share of itself."""
    draws = torch.Generator().manual_seed(0)

    def moved(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        signs = torch.randint(0, 2, output.shape[-1:], generator=draws).mul_(2).sub_(1)
        factors = 1 + resolution * signs
        return output * factors.to(output)

    handles = [layer.register_forward_hook(moved) for layer in module.modules() if not list(layer.children())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
