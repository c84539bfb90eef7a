"""A data set of one's own: `data: {train: {kind: ./echo.py, count: 24}}`. Tested by `luthier check ./echo.py`."""

from typing import ClassVar

from luthier.datasets.base import Dataset, Split, draw_records


class Echo(Dataset):
    """Words of random letters, to be said again."""

    SETTINGS: ClassVar = ({}, {"count": 12}, {"seed": 1}, {"split": "test"})

    count: int = 24
    seed: int = 0
    split: Split = "train"

    def records(self):
        """Different records, each from a generator of its own."""
        return draw_records(self.kind, self.draw, self.count, self.seed, self.split)

    def draw(self, generator):
        """The columns of one record."""
        word = "".join(generator.choices("abcdefgh", k=5))
        return {"prompt": f"repeat {word}", "completion": word}


if __name__ == "__main__":
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from luthier.recipe import load_recipe
    from luthier.steps.run import run_recipe

    recipe = {"data": {"train": {"kind": "./echo.py"}}}
    with TemporaryDirectory() as folder:
        record = run_recipe(
            load_recipe({"extends": "small.yaml", **recipe}, base=Path(__file__).parent), Path(folder), []
        )
    print(f"loss {record['train']['loss_first']:.3f}, then {record['train']['loss_last']:.3f}")
