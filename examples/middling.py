"""A selector of one's own: `train: {select: ./middling.py}`. Tested by `luthier check ./middling.py`."""

from typing import ClassVar

from luthier.select._values import loss_by_row
from luthier.select.base import Selector


class Middling(Selector):
    """Trains on candidates of middling loss: neither what is known nor what may be wrong."""

    SETTINGS: ClassVar = ({}, {"keep": 0.25}, {"pool": 3}, {"warmup": 2})

    def features(self, policy, batch, state):
        """Mean loss per target of each record of a micro-batch, without gradient."""
        return {"loss": loss_by_row(policy, batch)}

    def scores(self, pool):
        """Higher is kept: the nearer to the pool's median, the better."""
        loss = pool.features["loss"]
        return -(loss - loss.median()).abs()


if __name__ == "__main__":
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from luthier.recipe import load_recipe
    from luthier.steps.run import run_recipe

    recipe = {"train": {"select": {"kind": "./middling.py", "pool": 4}}}
    with TemporaryDirectory() as folder:
        record = run_recipe(
            load_recipe({"extends": "small.yaml", **recipe}, base=Path(__file__).parent), Path(folder), []
        )
    print(f"{record['train']['looked_rows']} records were scored, half of them trained on")
