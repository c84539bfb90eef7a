"""What can be told of the steps of a recipe before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luthier import parts
from luthier.errors import RecipeError
from luthier.modalities.diffusion.rollout import DRAWN
from luthier.objectives.sum import build_objective, members_of
from luthier.recipe import Stage, flat
from luthier.recipe.modality import MODALITIES, modality_of
from luthier.recipe.settings import Generate
from luthier.rewards.base import build_rewards
from luthier.rollouts.base import build_chain, check_chain

SAMPLED = ("advantages", "old_logprobs", "values", "returns")
"""Streams that only rows of sampled answers carry."""


PROBED = ("trajectory",)
"""Columns that a probe of a training before leaves."""


SCORED = ("sum_logprob", "mean_logprob", "tokens", "reward", "entropy")
"""Columns that a score step leaves, one value per answer."""


def verify(stages: Sequence[Stage]) -> None:
    """Refuse steps whose parts cannot work together.

    Raises:
        RecipeError: an objective for another kind of model or for sampled answers, where there are none; advantages
            in a senseless order, or that compare groups of one answer; a choice by losses that no step looks at;
            answers of another model where those of the model at hand are needed; rewards
            of another kind of model.
    """
    known: set[str] = set()
    for stage in flat(stages):
        known |= _left_by(stage)
        _answers_itself(stage)
        if stage.do == "select":
            _columns_are_known(stage, known)
        if stage.do in ("train", "rl"):
            _objective_fits(stage)
        if stage.do == "rl":
            _groups_compare(stage)


def _answers_itself(stage: Stage) -> None:
    """Only a `generate` step may have another model answer, if its own block says so."""
    settings, place = stage.recipe.settings, f"step `{stage.name}`"
    if stage.do == "rl" and settings.rl is not None and not samples_itself(settings.rl.generate, stage.recipe.base):
        raise RecipeError(
            f"The {place} learns from what the model in training says, and rl.generate.sampler has another one answer.",
            "Leave it out; to learn from another model, `generate` its answers and `train` on them.",
        )
    named = stage.do == "generate" and "sampler" in (stage.block.get("generate") or {})
    if not named and not samples_itself(settings.generate, stage.recipe.base):
        raise _not_itself()


def samples_itself(block: Generate, base: Path) -> bool:
    """Whether the model that a step has is the one that answers."""
    return parts.build("sampler", block.sampler, base).OWN


def refuse_others(block: Generate, base: Path) -> None:
    """Raise RecipeError where another model would answer than the one that is evaluated."""
    if not samples_itself(block, base):
        raise _not_itself()


def _not_itself() -> RecipeError:
    return RecipeError(
        "`generate.sampler` has another model answer, and evaluation asks the model that it scores.",
        "Write it in a step that does `generate`: `steps: {answers: {do: generate, generate: {sampler: ...}}}`.",
    )


def _objective_fits(stage: Stage) -> None:
    settings = stage.recipe.settings
    members = members_of(build_objective(settings.train.objective, stage.recipe.base))
    modality = modality_of(settings.model, stage.recipe.base)
    for one in members:
        if modality != one.MODALITY:
            raise _misfit(one.kind, one.MODALITY, settings.model.path, modality)
        sampled = [read for read in one.reads if read in SAMPLED]
        if sampled and stage.do == "train":
            raise RecipeError(
                f"`{one.kind}` learns from `{sampled[0]}` of answers that the model samples itself, and the step"
                f" `{stage.name}` trains on records.",
                "Add `rl: {}` to the recipe (in a pipeline, `do: rl`) and say in `reward:` what a good answer is.",
            )
    if modality != "language":
        _tuners_fold(stage, modality)
    if any(DRAWN in one.reads for one in members):
        _rollout_fits(stage)
    if settings.reward != "auto":
        _rewards_fit(stage, modality)
    if stage.do == "rl" and not any("advantages" in one.reads for one in members):
        raise RecipeError(
            f"`{members[0].kind}` does not look at rewards, and the step `{stage.name}` would train it on whatever the"
            " model samples.",
            "Write `rl:` in the methods that learn from rewards (grpo brings its own), not in the recipe; to train on"
            " right answers of the model's own, generate and select them (methods s3ft, fare).",
        )


def _misfit(objective: str, wanted: str, model: str, modality: str) -> RecipeError:
    fitting = [e.name for e in parts.catalogue("objective") if e.constants.get("MODALITY", "language") == modality]
    return RecipeError(
        f"`{objective}` is a loss of {MODALITIES[wanted].name}; {model} is one of the {MODALITIES[modality].name}.",
        f"`train.objective` of {MODALITIES[modality].name}: {', '.join(fitting[:8])}{', ...' if len(fitting) > 8 else ''}.",
    )


def _tuners_fold(stage: Stage, modality: str) -> None:
    spec = stage.recipe.settings.train.tuner
    for one in spec if isinstance(spec, list) else [spec]:
        tuner = parts.build("tuner", one, stage.recipe.base)
        if not tuner.MERGES:
            raise RecipeError(
                f"What the tuner `{tuner.kind}` learns cannot be merged, and {MODALITIES[modality].name} are saved as their own"
                " library loads them.",
                "Choose a tuner that folds into the weights, such as `lora` or `full`.",
            )


def _rollout_fits(stage: Stage) -> None:
    settings = stage.recipe.settings
    if settings.reward == "auto":
        raise RecipeError(
            "The samples of a rollout are judged, and nothing says what a good one is.",
            "Write `reward:`, for example ./mine.py.",
        )
    if settings.budget.unit != "updates":
        raise RecipeError(
            f"The budget is in {settings.budget.unit}; a rollout of samples is cut into updates.",
            "Write `budget: {updates: 60}`.",
        )


def _rewards_fit(stage: Stage, modality: str) -> None:
    known = {entry.name: entry.constants.get("MODALITY", "language") for entry in parts.catalogue("reward")}
    for member in build_rewards(stage.recipe.settings.reward, stage.recipe.base).members:
        if modality != member.reward.MODALITY:
            raise RecipeError(
                f"The reward `{member.name}` judges what {MODALITIES[member.reward.MODALITY].name} make; this recipe trains"
                f" {MODALITIES[modality].name}.",
                f"Of {MODALITIES[modality].name}: {', '.join(name for name, other in known.items() if other == modality)};"
                f' in a file of your own, `MODALITY = "{modality}"`.',
            )


def _left_by(stage: Stage) -> set[str]:
    """The columns that a step leaves for choices behind it."""
    if stage.do == "score":
        return {name for name in SCORED if name != "entropy" or stage.block["entropy"]}
    return set(PROBED) if stage.block.get("probe") else set()


def _columns_are_known(stage: Stage, known: set[str]) -> None:
    part = parts.build("subset", stage.block["subset"], stage.recipe.base)
    wanted = [read for read in part.READS if read in (*PROBED, *SCORED) and read not in known]
    if wanted and wanted[0] in SCORED:
        raise RecipeError(
            f"The step `{stage.name}` chooses by `{wanted[0]}`, and no `score` step before it gives that.",
            f"Put one before it: `scores: {{do: score, data: ..., entropy: {str(wanted[0] == 'entropy').lower()}}}`.",
        )
    if wanted:
        raise RecipeError(
            f"The step `{stage.name}` chooses by `{wanted[0]}`, the losses over a training, and no step before it has"
            " a probe.",
            "Put a step before it such as `proxy: {do: train, probe: {every: auto}}`.",
        )


def _groups_compare(stage: Stage) -> None:
    settings = stage.recipe.settings.rl
    assert settings is not None
    chain = build_chain(settings.advantages, stage.recipe.base)
    check_chain(chain)
    strategy = parts.build("strategy", settings.strategy, stage.recipe.base)
    comparing = next((link.kind for link in chain if link.COMPARES), None)
    if comparing and getattr(strategy, "group", None) == 1:
        raise RecipeError(
            f"The advantage `{comparing}` compares the answers of a group, and `{strategy.kind}` samples one.",
            "Set rl.strategy.group to 2 or more, or take advantages that do not compare, such as `returns`.",
        )
