"""A schedule of one's own: `train: {schedule: ./steps.py}`. Tested by `luthier check ./steps.py`."""

from typing import ClassVar

from luthier.engine.schedules.base import Schedule


class Steps(Schedule):
    """The learning rate falls to a tenth at each of `places`, parts of the budget."""

    SETTINGS: ClassVar = ({}, {"places": [0.3]})

    places: tuple[float, ...] = (0.5, 0.75)

    def factor(self, progress):
        """What the learning rate is multiplied by, at `progress` from 0 to 1."""
        return 0.1 ** sum(progress >= place for place in self.places)


if __name__ == "__main__":
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from luthier.recipe import load_recipe
    from luthier.steps.run import run_recipe

    recipe = {"train": {"schedule": "./steps.py"}}
    with TemporaryDirectory() as folder:
        record = run_recipe(
            load_recipe({"extends": "small.yaml", **recipe}, base=Path(__file__).parent), Path(folder), []
        )
    print(f"loss {record['train']['loss_first']:.3f}, then {record['train']['loss_last']:.3f}")
