"""Workspace of denoisers: cached latents with their conditions, and samples drawn from noise."""

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
from luthier.engine.source import Records, RowSource
from luthier.errors import DataError, ModelError
from luthier.evals.base import Evaluation, Item
from luthier.keyed import sha256_number
from luthier.modalities.arrays import PICTURES, ArrayWorkspace
from luthier.modalities.base import Log
from luthier.modalities.diffusion.rollout import OPTIMALITY, Condition, DenoisedRollout, Sampled
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
class DiffusionWorkspace(ArrayWorkspace):
    """A denoiser with its scheduler, and records of a clean sample and its conditions."""

    scheduler: Mapping[str, Any]
    WEIGHTS: ClassVar[str] = "transformer"

    @classmethod
    def open(
        cls, recipe: Recipe, device: torch.device, dtype: str, cache: Path | None, say: Callable[[str], None]
    ) -> DiffusionWorkspace:
        """Load or make the model, read the arrays, and call the model on one of them.

        Raises:
            DataError, ModelError: the data have no clean samples, or the model cannot be called on them.
        """
        settings = recipe.settings
        say("loading the model")
        model, compute_type = settings.model, getattr(torch, dtype)
        if model.config is not None:
            denoiser = make_denoiser(model.config, model.seed, compute_type)
        else:
            denoiser = open_denoiser(model_folder(model.path, recipe.base), compute_type)
        loaded = Loaded(denoiser.module.to(device), None, model.path, denoiser.weights_id)
        say("preparing the data")
        prepared = as_samples(prepare_rows(settings.data, recipe.base))
        workspace = cls(recipe, device, loaded, prepared, denoiser.scheduler)
        workspace.verify()
        return workspace

    def verify(self) -> None:
        """Raise ModelError if the model cannot be called on the data."""
        row = self.prepared.train[0]
        arrays = arrays_of([row]).replace(PREFIX, "")
        try:
            with torch.no_grad():
                x, condition = self._tensors([row])
                prediction = self.policy(self.loaded.module).predict(x, x.new_full((1,), 0.5), condition)
        except KeyError as error:
            name = str(error.args[0])
            raise ModelError(
                f"{self.loaded.name} reads `{name}`, which the data do not have: {arrays}.",
                f"Add an array `{name}`, or name the one to use: `columns: {{{name}: ...}}`.",
            ) from None
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ModelError(f"{self.loaded.name} cannot read the data ({arrays}): {reason}") from error
        if prediction.shape != x.shape:
            raise ModelError(
                f"{self.loaded.name} returns {list(prediction.shape[1:])} for a latent {list(x.shape[1:])}.",
                "Its out_channels and sample_size must be those of the latents.",
            )

    def policy(self, module: nn.Module) -> DenoiserPolicy:
        return DenoiserPolicy(module)

    def source(self, parts: Parts, rows: list[Row], policy: Any, layout: Layout, log: Log) -> RowSource:
        settings = self.recipe.settings
        if not isinstance(settings.rl, Denoise) or OPTIMALITY not in parts.needs.reads:
            return Records.of(self.recipe, parts, rows)
        budget = parts.budget(self.recipe)
        shift = self.shift if settings.rl.shift == "auto" else float(settings.rl.shift)
        how = Sampled(self.shape, **settings.rl.model_dump(exclude={"kind", "shift"}), shift=shift)
        return DenoisedRollout(policy, prompts_of(rows), self.rewards().of_samples, how, settings.seed, budget)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, without the batch axis."""
        return tuple(self.prepared.train[0].streams["latent"].values.shape)

    @property
    def sampling(self) -> Sample:
        """How the samples of the evaluation are drawn."""
        return self.recipe.settings.evaluate.sample or Sample()

    @property
    def shift(self) -> float:
        """How far solvers' levels lie towards the noise, unless a rollout has a shift of its own."""
        wanted = self.sampling.shift
        return shift_of(self.scheduler, self.shape) if wanted == "auto" else float(wanted)

    def rewards(self) -> Rewards:
        """The rewards that the recipe names under `reward:`."""
        return build_rewards(self.recipe.settings.reward, self.recipe.base)

    def score(self, module: nn.Module, name: str, journal: Journal) -> Evaluation | None:
        """Samples under the conditions of held-out records; the noise of each depends on its record alone."""
        rows = self.held_out(name)
        if not rows:
            return None
        progress, policy = journal.phase(f"evaluate {name}", len(rows)), self.policy(module)
        drawn, scores = [], []
        by_reward: dict[str, list[float]] = defaultdict(list)
        with reading(module):
            for chunk in chunks(rows, self.micro()):
                samples, condition = self.draw(policy, chunk)
                drawn.append(samples.float().cpu().numpy())
                chunk_scores, chunk_by_reward = self._scores(policy, chunk, samples, condition)
                scores += chunk_scores
                for reward, numbers in chunk_by_reward.items():
                    by_reward[reward] += numbers
                progress(len(scores), len(rows))

        pictures = numpy.concatenate(drawn)
        metric = "explained" if self.recipe.settings.reward == "auto" else self._metric()
        items = []
        for row, sample, score in zip(rows, pictures, scores, strict=True):
            items.append(self._item(row, sample, score, metric, with_pictures=len(items) < PICTURES))
        reason = "the recipe's reward" if metric != "explained" else "share of the velocity that the model explains"
        # A sheet of pictures needs samples [C,H,W]; vectors have none.
        sheet = b""
        if pictures.ndim == 4:
            sheet = png(grid([pixels(sample, self._span()) for sample in pictures[:PICTURES]]))
        further = {reward: sum(numbers) / len(numbers) for reward, numbers in by_reward.items()}
        return Evaluation(items, sum(scores) / len(scores), metric, reason, 0, True, sheet, further)

    def shown(self, module: nn.Module, sets: Sequence[str], journal: Journal) -> dict[str, Any]:
        """The flow loss on held-out records, at fixed levels and with fixed noise."""
        means = {}
        for name in sets:
            if rows := self.held_out(name):
                losses = [loss for loss, _ in self._losses(self.policy(module), rows)]
                means[f"flow loss, {name}"] = sum(losses) / len(losses)
        return {"further": means}

    def save_assets(self, folder: Path) -> None:
        (folder / SCHEDULER).mkdir()
        text = json.dumps(dict(self.scheduler), indent=2) + "\n"
        (folder / SCHEDULER / "scheduler_config.json").write_text(text, encoding="utf-8")

    def draw(self, policy: DenoiserPolicy, rows: Sequence[Row]) -> tuple[Tensor, dict[str, Tensor]]:
        """One sample under the condition of each row, and the conditions."""
        _, condition = self._tensors(rows)
        noise = self._noise(rows, "sample")

        def velocity(x: Tensor, level: Tensor) -> Tensor:
            return policy.velocity(x, level, condition)

        levels = solver_levels(self.sampling.steps, self.shift)
        return SOLVERS[self.sampling.solver](velocity, noise, levels), condition

    def _metric(self) -> str:
        return "+".join(member.name for member in self.rewards().members if member.weight)

    def _scores(
        self, policy: Any, rows: Sequence[Row], samples: Tensor, condition: Mapping[str, Tensor]
    ) -> tuple[list[float], dict[str, list[float]]]:
        """The score of each row; and, where the recipe has several rewards, each reward's own."""
        if self.recipe.settings.reward == "auto":
            return [share for _, share in self._losses(policy, rows)], {}
        rewards = self.rewards()
        by_name = rewards.by_name(samples, condition)
        apart = {name: scores.tolist() for name, scores in by_name.items()} if len(by_name) > 1 else {}
        return rewards.total(by_name).tolist(), apart

    def _losses(self, policy: DenoiserPolicy, rows: Sequence[Row]) -> list[tuple[float, float]]:
        """Of each row the flow loss, and the share of the velocity that is explained.

        The loss is the mean of |v - (ε - x₀)|² over LEVELS levels; the share 1 - loss / mean of |ε - x₀|², at least 0.
        """
        losses_and_shares = []
        with reading(policy.module):
            for chunk in chunks(rows, self.micro()):
                clean, condition = self._tensors(chunk)
                losses, sizes = clean.new_zeros(len(chunk)), clean.new_zeros(len(chunk))
                for index in range(LEVELS):
                    noise = self._noise(chunk, f"loss-{index}")
                    level = clean.new_full((len(chunk),), (index + 0.5) / LEVELS)
                    velocity = policy.velocity(noised(clean, noise, level), level, condition)
                    losses += (velocity - (noise - clean)).square().flatten(1).mean(1) / LEVELS
                    sizes += (noise - clean).square().flatten(1).mean(1) / LEVELS
                for loss, size in zip(losses, sizes, strict=True):
                    losses_and_shares.append((float(loss), max(0.0, float(1 - loss / size))))
        return losses_and_shares

    def _tensors(self, rows: Sequence[Row]) -> tuple[Tensor, dict[str, Tensor]]:
        """Clean samples [R,...] and conditions [R,...] on the device."""
        stacked = {}
        for name in rows[0].streams:
            array = numpy.stack([row.streams[name].values for row in rows])
            stacked[name] = torch.from_numpy(array).to(self.device)
        return stacked.pop("latent"), {name.removeprefix(PREFIX): values for name, values in stacked.items()}

    def _noise(self, rows: Sequence[Row], use: str) -> Tensor:
        """Noise [R,...] keyed by record and use, and by no seed: the base and every method are scored on the same."""
        drawn = []
        for row in rows:
            generator = numpy.random.default_rng(sha256_number(f"{use}/{row.id}", 16))
            drawn.append(generator.standard_normal(self.shape, dtype=numpy.float32))
        return torch.from_numpy(numpy.stack(drawn)).to(self.device)

    def _span(self) -> float:
        """The number drawn as white: 1 for pixels in [-1,1], else three standard deviations of the latents."""
        values = numpy.stack([row.streams["latent"].values for row in self.prepared.train[:64]])
        return 1.0 if abs(values).max() <= 1.0 else 3 * float(values.std())

    def _item(self, row: Row, sample: numpy.ndarray, score: float, metric: str, with_pictures: bool) -> Item:
        pictures = {}
        if with_pictures and sample.ndim == 3:
            arrays = {"prediction": sample, "reference": row.streams["latent"].values}
            pictures = {name: as_text(pixels(array, self._span())) for name, array in arrays.items()}
        # People can read labels; of embeddings, only the shape.
        condition = condition_of(row)
        labels = [f"{name} {array}" for name, array in condition.items() if numpy.ndim(array) == 0]
        shapes = [f"{name} {list(array.shape)}" for name, array in condition.items()]
        prompt = ", ".join(labels or shapes)
        prediction = f"{metric} {score:.3f}"
        return Item(row.id, prompt, "", prediction, score, None, metric, score >= 0.5, pictures)


def as_samples(prepared: Prepared) -> Prepared:
    """Rows as denoisers read them: the clean sample as `latent`, all other arrays as conditions.

    Without `latent`, `image` is the clean sample: pixels are then their own latents.

    Raises:
        DataError: neither `latent` nor `image` exists, or it holds integers.
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
        condition: dict[str, Stream] = {PREFIX + key: stream for key, stream in row.streams.items() if key != name}
        return replace(row, streams={"latent": row.streams[name], **condition})

    splits = {split: list(map(renamed, getattr(prepared, split))) for split in prepared.splits}
    return replace(prepared, **splits)


def prompts_of(rows: Sequence[Row]) -> list[Condition]:
    """The distinct conditions of the rows, in the order in which they first occur."""
    distinct: dict[bytes, Condition] = {}
    for row in rows:
        condition = condition_of(row)
        key = b"".join(numpy.ascontiguousarray(condition[name]).tobytes() for name in sorted(condition))
        distinct.setdefault(key, condition)
    return list(distinct.values())


def condition_of(row: Row) -> Condition:
    """The condition of a row's sample: name → array."""
    return {name.removeprefix(PREFIX): stream.values for name, stream in row.streams.items() if name.startswith(PREFIX)}


def chunks(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """The rows in order, `size` at a time."""
    return (rows[start : start + size] for start in range(0, len(rows), size))
