"""An advantage of one's own: `rl: {advantages: ./ranks.py}`. Tested by `luthier check ./ranks.py`."""

from typing import ClassVar

import numpy

from luthier.rollouts.base import Advantage


class Ranks(Advantage):
    """Ranks within the group, from -1 for the worst to 1 for the best: how much better does not count."""

    COMPARES: ClassVar = True
    TAKES: ClassVar = "rewards"

    def compute(self, rollout, values):
        """One number per answer; every token of it is credited with that."""
        credits = rollout.totals(values)
        for places in rollout.by_group(self.kind):
            judged = places[numpy.isfinite(credits[places])]  # an answer may have no reward
            won = numpy.sign(credits[judged][:, None] - credits[judged])
            credits[judged] = won.sum(1) / max(1, len(judged) - 1)
        return credits


if __name__ == "__main__":
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from luthier.recipe import load_recipe
    from luthier.steps.run import run_recipe

    rl = {"strategy": {"group": 4}, "generate": {"max_new_tokens": 8}, "advantages": "./ranks.py"}
    recipe = {"train": {"objective": "grpo"}, "rl": rl, "reward": "./digits.py"}
    with TemporaryDirectory() as folder:
        record = run_recipe(
            load_recipe({"extends": "small.yaml", **recipe}, base=Path(__file__).parent), Path(folder), []
        )
    print(f"{record['train']['updates']} updates, {record['train']['skipped_updates']} without a signal")
