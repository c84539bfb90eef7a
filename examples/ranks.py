"""An advantage of one's own: `rl: {advantages: ./ranks.py}`."""

from typing import ClassVar

import numpy

from luthier.rollouts.base import Advantage


class Ranks(Advantage):
    """Ranks within the group, from -1 for the worst to 1 for the best: how much better does not count."""

    COMPARES: ClassVar = True
    TAKES: ClassVar = "rewards"

    def compute(self, rollout, values):
        """One number per answer; every token of it is credited with that."""
        rewards = rollout.totals(values)
        found = rewards * 0
        for places in rollout.by_group(self.kind):
            won = numpy.sign(rewards[places][:, None] - rewards[places])
            found[places] = won.sum(1) / (len(places) - 1)
        return found


if __name__ == "__main__":
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from luthier.recipe import load_recipe
    from luthier.steps import run_recipe

    rl = {"strategy": {"group": 4}, "generate": {"max_new_tokens": 8}, "advantages": "./ranks.py"}
    recipe = {"train": {"objective": "grpo"}, "rl": rl, "reward": "./digits.py"}
    with TemporaryDirectory() as folder:
        record = run_recipe(
            load_recipe({"extends": "small.yaml", **recipe}, base=Path(__file__).parent), Path(folder), []
        )
    print(f"{record['train']['updates']} updates, {record['train']['skipped_updates']} without a signal")
