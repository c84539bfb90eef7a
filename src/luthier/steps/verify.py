"""Checks of the steps of a recipe before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luthier import parts
from luthier.errors import RecipeError
from luthier.objectives.base import Objective
from luthier.objectives.sum import build_objective, members_of
from luthier.recipe import Stage, flat
from luthier.recipe.modality import MODALITIES, modality_of
from luthier.recipe.settings import RL, Denoise, GenerateSettings
from luthier.rewards.base import build_rewards
from luthier.rollouts.base import build_chain, check_chain

SAMPLED = {"generate": ("advantages", "old_logprobs", "values", "returns"), "denoise": ("optimality",)}
"""Kind of rollout → the streams that only rows of sampled answers have."""


def verify(stages: Sequence[Stage]) -> None:
    """Let the verb of every step refuse what the step cannot do.

    Raises:
        RecipeError: an objective of another modality, or for sampled answers where there are none; advantages in an
            order that makes no sense, or that compare groups of one answer; a selection by losses that no step
            records; answers of another model where the trained model must answer; rewards of another modality.
    """
    columns: set[str] = set()  # grows in written order: a step reads only what earlier steps leave
    for stage in flat(stages):
        stage.verb.check(stage, columns)
        columns |= set(stage.verb.columns)


def samples_itself(block: GenerateSettings, base: Path) -> bool:
    """Whether the block's sampler lets the step's own model answer."""
    return parts.build("sampler", block.sampler, base).OWN


def refuse_others(block: GenerateSettings, base: Path) -> None:
    """Raise RecipeError if another model would answer in an evaluation than the model that is scored."""
    if not samples_itself(block, base):
        raise RecipeError(
            "`generate.sampler` lets another model answer, and an evaluation scores the answers of its own model.",
            "Write it in a step that does `generate`: `steps: {answers: {do: generate, generate: {sampler: ...}}}`.",
        )


def fitting_objectives(stage: Stage) -> list[Objective]:
    """The objectives of a training step.

    Raises:
        RecipeError: an objective of another modality.
    """
    settings = stage.recipe.settings
    members = members_of(build_objective(settings.train.objective, stage.recipe.base))
    modality = modality_of(settings.model, stage.recipe.base)
    for member in members:
        if modality != member.MODALITY:
            raise _misfit(member.kind, member.MODALITY, settings.model.path, modality)
    return members


def refuse_misfits(stage: Stage, members: Sequence[Objective]) -> None:
    """Raise RecipeError for tuners, rollouts and rewards that do not fit the model of a training step.

    Args:
        members: the step's objectives, as `fitting_objectives` gives them.
    """
    settings = stage.recipe.settings
    modality = modality_of(settings.model, stage.recipe.base)
    if modality != "language":
        _refuse_unmergeable(stage, modality)
    reads = {read for member in members for read in member.reads}
    if isinstance(settings.rl, Denoise) and reads.intersection(SAMPLED["denoise"]):
        _refuse_unfit_rollout(stage)
    if settings.reward != "auto":
        _refuse_unfit_rewards(stage, modality)


def _misfit(objective: str, wanted: str, model: str, modality: str) -> RecipeError:
    entries = parts.catalogue("objective")
    fitting = [entry.name for entry in entries if entry.constants.get("MODALITY", "language") == modality]
    more = ", ..." if len(fitting) > 8 else ""  # a hint of one line
    return RecipeError(
        f"`{objective}` trains {MODALITIES[wanted].name}; {model} is one of the {MODALITIES[modality].name}.",
        f"`train.objective` of {MODALITIES[modality].name}: {', '.join(fitting[:8])}{more}.",
    )


def _refuse_unmergeable(stage: Stage, modality: str) -> None:
    spec = stage.recipe.settings.train.tuner
    for tuner_spec in spec if isinstance(spec, list) else [spec]:
        tuner = parts.build("tuner", tuner_spec, stage.recipe.base)
        if not tuner.MERGES:
            raise RecipeError(
                f"The tuner `{tuner.kind}` cannot be merged into the weights, and {MODALITIES[modality].name} are saved"
                " with all tuning merged.",
                "Choose a tuner that can be merged, such as `lora` or `full`.",
            )


def _refuse_unfit_rollout(stage: Stage) -> None:
    settings = stage.recipe.settings
    if settings.reward == "auto":
        raise RecipeError(
            "A rollout samples and learns from rewards, and the recipe has no `reward`.",
            "Write `reward:`, for example ./mine.py.",
        )
    if settings.budget.unit != "updates":
        raise RecipeError(
            f"The budget is in {settings.budget.unit}; with rollouts of samples a budget counts updates.",
            "Write `budget: {updates: 60}`.",
        )


def _refuse_unfit_rewards(stage: Stage, modality: str) -> None:
    known = {entry.name: entry.constants.get("MODALITY", "language") for entry in parts.catalogue("reward")}
    fitting = ", ".join(name for name, other in known.items() if other == modality)
    trained = MODALITIES[modality].name
    for member in build_rewards(stage.recipe.settings.reward, stage.recipe.base).members:
        if modality != member.reward.MODALITY:
            judged = MODALITIES[member.reward.MODALITY].name
            raise RecipeError(
                f"The reward `{member.name}` judges outputs of {judged}; this recipe trains {trained}.",
                f'Rewards for {trained}: {fitting}; in a file of your own, `MODALITY = "{modality}"`.',
            )


def refuse_senseless_advantages(stage: Stage) -> None:
    """Raise RecipeError for advantages in an order that makes no sense, or that compare groups of one answer."""
    settings = stage.recipe.settings.rl
    if not isinstance(settings, RL):
        return  # a diffusion model's rollout always compares the samples of a group
    chain = build_chain(settings.advantages, stage.recipe.base)
    check_chain(chain)
    strategy = parts.build("strategy", settings.strategy, stage.recipe.base)
    comparing = next((link.kind for link in chain if link.COMPARES), None)
    if comparing and getattr(strategy, "group", None) == 1:
        raise RecipeError(
            f"The advantage `{comparing}` compares the answers of a group, and `{strategy.kind}` samples one.",
            "Set rl.strategy.group to 2 or more, or take advantages that do not compare, such as `returns`.",
        )
