"""An objective of one's own: `train: {objective: ./focal.py}`. Tested by `luthier check ./focal.py`."""

from typing import ClassVar

from luthier.objectives.base import TokenObjective


class Focal(TokenObjective):
    """Focal loss (arXiv 1708.02002): -(1 - p)^gamma log p, so that tokens that are likely already count less."""

    SETTINGS: ClassVar = ({}, {"gamma": 1.0})

    gamma: float = 2.0

    def token_loss(self, view):
        """One value per target [n]; the engine takes weights, sums and divides."""
        return -((1 - view.logprob.exp()) ** self.gamma) * view.logprob


if __name__ == "__main__":
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from luthier.recipe import load_recipe
    from luthier.steps.run import run_recipe

    recipe = {"train": {"objective": "./focal.py"}}
    with TemporaryDirectory() as folder:
        record = run_recipe(
            load_recipe({"extends": "small.yaml", **recipe}, base=Path(__file__).parent), Path(folder), []
        )
    print(f"loss {record['train']['loss_first']:.3f}, then {record['train']['loss_last']:.3f}")
