"""The checks of rewards that judge samples of denoisers: on drawn digits, half of them under noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy
import torch
from torch import Tensor

from luthier import parts
from luthier.conformance.base import Failed, check_options, variants
from luthier.errors import RecipeError
from luthier.rewards.base import Reward

SAMPLES = 12


def tiny_samples() -> tuple[Tensor, dict[str, Tensor]]:
    """Pictures [12,1,8,8], and their classes in every form that a condition may have."""
    rows = parts.build("dataset", {"kind": "digits", "count": SAMPLES}).rows()
    condition = {}
    for name in rows[0].streams:
        condition[name] = torch.from_numpy(numpy.stack([row.streams[name].values for row in rows]))
    pictures = condition.pop("image")
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    is_clean = torch.arange(SAMPLES)[:, None, None, None] % 2 == 0
    return torch.where(is_clean, pictures, 0.5 * pictures + noise), condition


def values_of(reward: Reward) -> Tensor:
    """The rewards of the samples, [12].

    Raises:
        Failed: a sample has no finite number.
    """
    samples, condition = tiny_samples()
    rewards = reward.score_samples(samples, condition)
    if rewards.shape != (len(samples),) or not rewards.isfinite().all():
        raise Failed(f"{len(samples)} samples are worth {rewards!r}: one finite number each")
    return rewards


def check_values(reward: Reward) -> None:
    """One finite number for each sample, or a RecipeError for samples that the reward cannot judge."""
    try:
        values_of(reward)
    except RecipeError:
        return


def check_alone(reward: Reward) -> None:
    """A sample gets the same reward again, and alone; the samples do not change."""
    samples, condition = tiny_samples()
    before, together = samples.clone(), values_of(reward)
    apart = []
    for index in range(SAMPLES):
        of_sample = {name: values[index : index + 1] for name, values in condition.items()}
        apart.append(reward.score_samples(samples[index : index + 1], of_sample))
    # A network adds up a batch of another size in another order: equal up to rounding.
    if not torch.equal(together, values_of(reward)) or not torch.allclose(together, torch.cat(apart), atol=1e-5):
        raise Failed("a sample gets another reward the second time, or alone")
    reward.score_samples(samples, condition)
    if not torch.equal(samples, before):
        raise Failed("the reward changes the samples: copy them")


def checks(part: type[Reward]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of a reward of samples, in the order they are run; of one that cannot judge digits only the first."""
    rewards = variants(part)
    yield "a number for any sample, or a refusal", lambda: check_values(rewards[0])
    try:
        values_of(rewards[0])
    except RecipeError:
        return
    except Exception:  # the first check reports it
        pass
    yield "the same alone and again", lambda: check_alone(rewards[0])
    yield (
        "every option changes something",
        lambda: check_options(rewards, lambda reward: {"values": values_of(reward)}, Reward.model_fields),
    )
