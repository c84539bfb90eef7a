"""Rl: reinforcement learning from rewards of the model's own answers."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.errors import RecipeError
from luthier.parts import lazy
from luthier.recipe.sampling import RL
from luthier.recipe.steps import DATA, NEWEST
from luthier.steps.verbs.base import Blocks, Data, From, Share, Status, Verb

if TYPE_CHECKING:
    from luthier.recipe import Stage
    from luthier.steps.work import Work

_training = lazy("luthier.steps.verbs._training")
verify = lazy("luthier.steps.verify")


class Rl(Verb):
    """Samples answers, judges them and trains on them."""

    LEAVES: ClassVar = ("model",)
    TRAINS: ClassVar = True
    OVERLAYS: ClassVar = ("train", "rl", "reward")

    from_: From = NEWEST
    data: Data = DATA
    share: Share = None
    train: Blocks = None
    rl: Blocks = None
    reward: Blocks = None

    def adapt(self, recipe: dict[str, Any]) -> None:
        """Give the step the default rollout if the recipe has no `rl` block."""
        if recipe["rl"] is None:
            recipe["rl"] = {}

    def check(self, stage: Stage, columns: Collection[str]) -> None:
        settings, base = stage.recipe.settings, stage.recipe.base
        # A diffusion model's rollout (`Denoise`) draws the samples itself, and its advantages are fixed.
        answers = settings.rl if isinstance(settings.rl, RL) else None
        if answers and not verify.samples_itself(answers.generate, base):
            raise RecipeError(
                f"The step `{stage.name}` learns from answers of the model in training, and `rl.generate.sampler` lets"
                " another model answer.",
                "Leave the sampler out; to learn from another model, `generate` its answers and `train` on them.",
            )
        super().check(stage, columns)
        members = verify.fitting_objectives(stage)
        verify.refuse_misfits(stage, members)
        if answers and not any("advantages" in member.reads for member in members):
            raise RecipeError(
                f"`{members[0].kind}` does not read rewards, and the step `{stage.name}` would train the model on"
                " all of its own answers, right or wrong.",
                "Write `rl:` in the methods that learn from rewards (grpo brings its own), not in the recipe; to train"
                " on right answers of the model's own, generate and select them (methods s3ft, fare).",
            )
        verify.refuse_senseless_advantages(stage)

    def run(self, work: Work, stage: Stage, folder: Path) -> Status:
        """Train from the newest checkpoint."""
        return _training.train(work, stage, folder)
