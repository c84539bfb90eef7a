"""The conformance matrix of rewards that judge samples: tried on drawn digits, half of them under noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy
import torch
from torch import Tensor

from luthier import parts
from luthier.conformance.base import Failed, check_options, variants
from luthier.errors import RecipeError
from luthier.rewards.base import Reward


def made_up() -> tuple[Tensor, dict[str, Tensor]]:
    """Pictures [12,1,8,8], and their classes in every form that a model may be told them."""
    rows = parts.build("dataset", {"kind": "digits", "count": 12}).rows()
    told = {name: torch.from_numpy(numpy.stack([row.streams[name].values for row in rows])) for name in rows[0].streams}
    pictures = told.pop("image")
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    return torch.where(torch.arange(12)[:, None, None, None] % 2 == 0, pictures, 0.5 * pictures + noise), told


def values_of(reward: Reward) -> Tensor:
    """What a reward says of the samples.

    Raises:
        Failed: it is not one finite number for each.
    """
    samples, told = made_up()
    found = reward.score_samples(samples, told)
    if found.shape != (len(samples),) or not found.isfinite().all():
        raise Failed(f"{len(samples)} samples are worth {found!r}: one finite number each")
    return found


def check_values(reward: Reward) -> None:
    """One finite number for each sample, or a refusal of samples that it is not made for."""
    try:
        values_of(reward)
    except RecipeError:
        return


def check_alone(reward: Reward) -> None:
    """A sample is worth the same again, and alone; what is judged is left as it was."""
    samples, told = made_up()
    before, whole = samples.clone(), values_of(reward)
    one = torch.cat(
        [reward.score_samples(samples[i : i + 1], {k: v[i : i + 1] for k, v in told.items()}) for i in range(12)]
    )
    if not torch.equal(whole, values_of(reward)) or not torch.allclose(whole, one, atol=1e-5):
        raise Failed("a sample is worth something else the second time, or alone")
    reward.score_samples(samples, told)
    if not torch.equal(samples, before):
        raise Failed("the samples are changed: copy them")


def checks(part: type[Reward]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of a reward of samples; of one that is not made for digits only the first."""
    made = variants(part)
    yield "a number for any sample, or a refusal", lambda: check_values(made[0])
    try:
        values_of(made[0])
    except RecipeError:
        return
    except Exception:  # which the first check tells
        pass
    yield "the same alone and again", lambda: check_alone(made[0])
    yield (
        "every option changes something",
        lambda: check_options(made, lambda r: {"v": values_of(r)}, Reward.model_fields),
    )
