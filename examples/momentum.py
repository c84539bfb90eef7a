"""An optimiser of one's own: `train: {optimizer: ./momentum.py}`. Tested by `luthier check ./momentum.py`."""

from typing import ClassVar

import torch

from luthier.engine.optimizers.base import Optimizer


class Momentum(Optimizer):
    """Stochastic gradient descent with momentum. `clip` bounds the norm of an update's gradient."""

    SETTINGS: ClassVar = ({}, {"lr": 0.01}, {"momentum": 0.5}, {"clip": 0.01})

    lr: float = 0.1
    momentum: float = 0.9
    clip: float | None = 1.0

    def make(self, parameters):
        """Any torch optimiser over the fp32 parameters."""
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum)


if __name__ == "__main__":
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from luthier.recipe import load_recipe
    from luthier.steps.run import run_recipe

    recipe = {"train": {"optimizer": "./momentum.py"}}
    with TemporaryDirectory() as folder:
        record = run_recipe(
            load_recipe({"extends": "small.yaml", **recipe}, base=Path(__file__).parent), Path(folder), []
        )
    print(f"loss {record['train']['loss_first']:.3f}, then {record['train']['loss_last']:.3f}")
