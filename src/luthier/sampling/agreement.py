"""Whether logits of texts are those of a model's plain forward, up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.sampling.state import Forward, State

AT_ONCE, STEPS = 6, 3
"""Tokens of a trial whose logits are computed at once, and by steps of one token."""
CAUSAL = 16  # positions before the last token that must not move with it
EXACT = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Errors of log-probabilities that pass at once, relative to the largest logit; shorter types: their resolution."""
QUARTILE, LARGEST = 0.75, 2.0
"""The upper quartile of errors may be that of `Truth.noise`, which is about twice what rounding does; the largest error
this multiple of the largest noise."""


@dataclass(frozen=True)
class TrialTexts:
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
class TrialLogits:
    """Logits [rows,P,V] behind `offset`, ... `offset` + P - 1 tokens after the prompts of the trial's texts `rows`.

    `kind` says how they were read; errors are judged by kind.
    """

    kind: str
    rows: Sequence[int]
    offset: int
    logits: Tensor


def split_tokens(more: int) -> tuple[int, int]:
    """How many of the tokens behind a prompt are read at once with all logits, and how many singly."""
    steps = min(STEPS, more)
    return min(AT_ONCE, more - steps), steps


class Truth:
    """The log-probabilities of a trial's texts by the model's plain forward, each text alone.

    Raises:
        ModelError: the plain forward fails.
    """

    def __init__(self, forward: Forward, trial: TrialTexts):
        self.forward, self.trial = forward, trial
        at_once, steps = split_tokens(trial.more)
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
        # Without the padding that a trial holds: some models leave out what follows as many tokens as are no padding.
        prompt = self.trial.prompts[0]
        text = [*self.trial.texts[0][:prompt], *self.trial.texts[0][prompt + 2 :]]
        other = next((token for token in text if token != text[-1]), text[-1])
        positions = range(max(0, len(text) - 1 - CAUSAL), len(text) - 1)
        texts = [torch.tensor([row], device=self.forward.device) for row in (text, [*text[:-1], other])]
        first, second = (logprobs_of(self.forward.plain(row, positions)[0]) for row in texts)
        if len(positions) and not is_rounding(
            errors_of(first, second), self.exact, lambda: self.noise(torch.finfo(self.forward.dtype).eps)
        ):
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

    def errors(self, reading: TrialLogits) -> Tensor:
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
    if float(errors.max()) > max(exact, LARGEST * float(noise().max())):
        return False
    usual = float(noise().flatten().quantile(QUARTILE))
    return largest_only or float(errors.quantile(QUARTILE)) <= max(exact, usual)


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
        return output * (1 + resolution * signs).to(output)

    handles = [layer.register_forward_hook(moved) for layer in module.modules() if not list(layer.children())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
