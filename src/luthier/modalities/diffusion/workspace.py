"""What steps stand on where the model is a denoiser: cached latents with their conditions, samples from noise."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor, nn

from luthier.data.arrays import arrays_of, prepare_rows
from luthier.data.batches import Layout
from luthier.data.prepare import Prepared
from luthier.diffusion.levels import noised, solver_levels
from luthier.diffusion.load import SCHEDULER, make_denoiser, open_denoiser, shift_of
from luthier.diffusion.policy import PREFIX, DenoiserPolicy
from luthier.diffusion.solvers import SOLVERS
from luthier.engine.assemble import Parts
from luthier.engine.source import RowSource
from luthier.errors import DataError, ModelError
from luthier.evals.base import Evaluation, Item
from luthier.keyed import sha256_number
from luthier.modalities.arrays import PICTURES, ArrayGround
from luthier.modalities.base import Log
from luthier.modalities.diffusion.rollout import DRAWN, Condition, DenoisedRollout, Sampled
from luthier.models.loading.load import Loaded
from luthier.models.policy import reading
from luthier.recipe import Recipe
from luthier.recipe.modality import model_folder
from luthier.recipe.settings import Denoise, Sample
from luthier.rewards.base import Rewards, build_rewards
from luthier.runs.journal import Journal
from luthier.types import Row, Stream
from luthier.vision.pictures import as_text, grid, pixels, png

LEVELS = 8
"""Levels at which a held-out record's loss is taken, with noise of its own at each."""


@dataclass(frozen=True)
class DiffusionWorkspace(ArrayGround):
    """A denoiser with its scheduler, and records of a clean sample and what it is told with it."""

    scheduler: Mapping[str, Any]
    WEIGHTS: ClassVar[str] = "transformer"

    @classmethod
    def open(
        cls, recipe: Recipe, device: torch.device, dtype: str, cache: Path | None, say: Callable[[str], None]
    ) -> DiffusionWorkspace:
        """Load or make the model, read the arrays, and try the one on the other."""
        settings = recipe.settings
        say("loading the model")
        model, wide = settings.model, getattr(torch, dtype)
        if model.config is not None:
            made = make_denoiser(model.config, model.seed, wide)
        else:
            made = open_denoiser(model_folder(model.path, recipe.base), wide)
        loaded = Loaded(made.module.to(device), None, model.path, made.weights_id)
        say("preparing the data")
        prepared = as_samples(prepare_rows(settings.data, recipe.base))
        workspace = cls(recipe, device, loaded, prepared, made.scheduler)
        workspace.verify()
        return workspace

    def verify(self) -> None:
        """Raise ModelError if the model cannot be called on the data."""
        row = self.prepared.train[0]
        held = arrays_of([row]).replace(PREFIX, "")
        try:
            with torch.no_grad():
                x, told = self._given([row])
                found = self.policy(self.loaded.module).predict(x, x.new_full((1,), 0.5), told)
        except KeyError as error:
            name = str(error.args[0])
            raise ModelError(
                f"{self.loaded.name} is told `{name}`, which the data do not have: {held}.",
                f"Bring it as an array `{name}`, or say which one it is: `columns: {{{name}: ...}}`.",
            ) from None
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ModelError(f"{self.loaded.name} cannot read the data ({held}): {reason}") from error
        if found.shape != x.shape:
            raise ModelError(
                f"{self.loaded.name} gives {list(found.shape[1:])} for a latent {list(x.shape[1:])}.",
                "Its out_channels and sample_size must be those of the latents.",
            )

    def policy(self, module: nn.Module) -> DenoiserPolicy:
        return DenoiserPolicy(module)

    def source(self, parts: Parts, rows: list[Row], policy: Any, layout: Layout, log: Log) -> RowSource:
        settings = self.recipe.settings
        if not isinstance(settings.rl, Denoise) or DRAWN not in parts.needs.reads:
            return super().source(parts, rows, policy, layout, log)
        budget = parts.budget(self.recipe)
        shift = self.shift if settings.rl.shift == "auto" else float(settings.rl.shift)
        how = Sampled(self.shape, **settings.rl.model_dump(exclude={"kind", "shift"}), shift=shift)
        return DenoisedRollout(policy, prompts_of(rows), self.rewards().of_samples, how, settings.seed, budget)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample."""
        return tuple(self.prepared.train[0].streams["latent"].values.shape)

    @property
    def sampling(self) -> Sample:
        """How samples are drawn to be scored."""
        return self.recipe.settings.evaluate.sample or Sample()

    @property
    def shift(self) -> float:
        """How far solvers' levels lie towards the noise, unless a rollout has a shift of its own."""
        wanted = self.sampling.shift
        return shift_of(self.scheduler, self.shape) if wanted == "auto" else float(wanted)

    def rewards(self) -> Rewards:
        """The recipe's rewards."""
        return build_rewards(self.recipe.settings.reward, self.recipe.base)

    def score(self, module: nn.Module, name: str, journal: Journal) -> Evaluation | None:
        """Samples under the conditions of held-out records, each from noise of its own that is always the same."""
        rows = self.held_out(name)
        if not rows:
            return None
        progress, policy = journal.phase(f"evaluate {name}", len(rows)), self.policy(module)
        drawn, scores = [], []
        judged: dict[str, list[float]] = defaultdict(list)
        with reading(module):
            for some in chunks(rows, self.micro()):
                samples, told = self.draw(policy, some)
                drawn.append(samples.float().cpu().numpy())
                found, apart = self._scores(policy, some, samples, told)
                scores += found
                for judge, values in apart.items():
                    judged[judge] += values
                progress(len(scores), len(rows))
        pictures = numpy.concatenate(drawn)
        metric = "explained" if self.recipe.settings.reward == "auto" else self._metric()
        items = [self._item(*one, metric) for one in zip(rows, pictures, scores, strict=True)]
        for index, item in enumerate(items[PICTURES:], PICTURES):
            items[index] = replace(item, pictures={})
        reason = "the recipe's reward" if metric != "explained" else "share of the velocity that the model explains"
        shown = [pixels(one, self._span()) for one in pictures[:PICTURES]]
        sheet = png(grid(shown)) if pictures.ndim == 4 else b""
        further = {judge: sum(values) / len(values) for judge, values in judged.items()}
        return Evaluation(items, sum(scores) / len(scores), metric, reason, 0, True, sheet, further)

    def shown(self, module: nn.Module, sets: Sequence[str], journal: Journal) -> dict[str, Any]:
        """The flow loss on held-out records, at fixed levels and with fixed noise."""
        found = {}
        for name in sets:
            if rows := self.held_out(name):
                losses = [loss for loss, _ in self._losses(self.policy(module), rows)]
                found[f"flow loss, {name}"] = sum(losses) / len(losses)
        return {"further": found}

    def save_assets(self, folder: Path) -> None:
        (folder / SCHEDULER).mkdir()
        text = json.dumps(dict(self.scheduler), indent=2) + "\n"
        (folder / SCHEDULER / "scheduler_config.json").write_text(text, encoding="utf-8")

    def draw(self, policy: DenoiserPolicy, rows: Sequence[Row]) -> tuple[Tensor, dict[str, Tensor]]:
        """One sample under the condition of each row, and the conditions."""
        sample = self.sampling
        _, told = self._given(rows)
        noise = self._noise(rows, "sample")

        def velocity(x: Tensor, level: Tensor) -> Tensor:
            return policy.velocity(x, level, told)

        return SOLVERS[sample.solver](velocity, noise, solver_levels(sample.steps, self.shift)), told

    def _metric(self) -> str:
        return "+".join(member.name for member in self.rewards().members if member.weight)

    def _scores(
        self, policy: Any, rows: Sequence[Row], samples: Tensor, told: Mapping[str, Tensor]
    ) -> tuple[list[float], dict[str, list[float]]]:
        """The score of each row, and where the recipe has several rewards what each of them says."""
        if self.recipe.settings.reward == "auto":
            return [share for _, share in self._losses(policy, rows)], {}
        rewards = self.rewards()
        values = rewards.by_name(samples, told)
        several = len(values) > 1
        return rewards.total(values).tolist(), {name: found.tolist() for name, found in values.items() if several}

    def _losses(self, policy: DenoiserPolicy, rows: Sequence[Row]) -> list[tuple[float, float]]:
        """Of each row: mean of |v - (ε - x₀)|² over LEVELS levels, and 1 - that over the mean of |ε - x₀|²."""
        found = []
        with reading(policy.module):
            for some in chunks(rows, self.micro()):
                clean, told = self._given(some)
                wrong, size = clean.new_zeros(len(some)), clean.new_zeros(len(some))
                for index in range(LEVELS):
                    noise = self._noise(some, f"loss-{index}")
                    level = clean.new_full((len(some),), (index + 0.5) / LEVELS)
                    velocity = policy.velocity(noised(clean, noise, level), level, told)
                    wrong += (velocity - (noise - clean)).square().flatten(1).mean(1) / LEVELS
                    size += (noise - clean).square().flatten(1).mean(1) / LEVELS
                found += [(float(a), max(0.0, float(1 - a / b))) for a, b in zip(wrong, size, strict=True)]
        return found

    def _given(self, rows: Sequence[Row]) -> tuple[Tensor, dict[str, Tensor]]:
        """Clean samples [R,...] and conditions [R,...] on the device."""
        stacked = {
            name: torch.from_numpy(numpy.stack([row.streams[name].values for row in rows])).to(self.device)
            for name in rows[0].streams
        }
        return stacked.pop("latent"), {name.removeprefix(PREFIX): values for name, values in stacked.items()}

    def _noise(self, rows: Sequence[Row], use: str) -> Tensor:
        """Noise [R,...] that a record and a use alone decide: no seed of a run moves it."""
        drawn = []
        for row in rows:
            generator = numpy.random.default_rng(sha256_number(f"{use}/{row.id}", 16))
            drawn.append(generator.standard_normal(self.shape, dtype=numpy.float32))
        return torch.from_numpy(numpy.stack(drawn)).to(self.device)

    def _span(self) -> float:
        """The value that is shown as white: 1 for pixels in [-1,1], else three times the latents' spread."""
        values = numpy.stack([row.streams["latent"].values for row in self.prepared.train[:64]])
        return 1.0 if abs(values).max() <= 1.0 else 3 * float(values.std())

    def _item(self, row: Row, sample: numpy.ndarray, score: float, metric: str) -> Item:
        pictures = {}
        if sample.ndim == 3:
            kept = {"prediction": sample, "reference": row.streams["latent"].values}
            pictures = {name: as_text(pixels(values, self._span())) for name, values in kept.items()}
        told = {n.removeprefix(PREFIX): s.values for n, s in row.streams.items() if n.startswith(PREFIX)}
        words = [f"{name} {value}" for name, value in told.items() if numpy.ndim(value) == 0]
        prompt = ", ".join(words) or ", ".join(f"{name} {list(value.shape)}" for name, value in told.items())
        said = f"{metric} {score:.3f}"
        return Item(row.id, prompt, "", said, score, None, metric, score >= 0.5, pictures)


def as_samples(prepared: Prepared) -> Prepared:
    """Rows as denoisers read them: the clean sample as `latent`, all else as conditions; pixels are their own latents.

    Raises:
        DataError: there is neither `latent` nor `image`.
    """
    first = prepared.train[0]
    name = next((name for name in ("latent", "image") if name in first.streams), None)
    if name is None:
        raise DataError(
            f"The data have no `latent`: {arrays_of([first])}.",
            "Name the array that holds the clean samples: `columns: {latent: ...}`.",
        )
    if first.streams[name].values.dtype != numpy.float32:
        raise DataError(f"`{name}` holds whole numbers; a clean sample is an array of real ones.")

    def renamed(row: Row) -> Row:
        told: dict[str, Stream] = {PREFIX + key: stream for key, stream in row.streams.items() if key != name}
        return replace(row, streams={"latent": row.streams[name], **told})

    splits = {split: [renamed(row) for row in getattr(prepared, split)] for split in prepared.splits}
    return replace(prepared, **splits)


def prompts_of(rows: Sequence[Row]) -> list[Condition]:
    """The different conditions of the rows, in their order."""
    found: dict[bytes, Condition] = {}
    for row in rows:
        told = {n.removeprefix(PREFIX): s.values for n, s in row.streams.items() if n.startswith(PREFIX)}
        key = b"".join(numpy.ascontiguousarray(told[name]).tobytes() for name in sorted(told))
        found.setdefault(key, told)
    return list(found.values())


def chunks(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """The rows, `size` at a time."""
    return (rows[start : start + size] for start in range(0, len(rows), size))
