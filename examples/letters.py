"""A metric of one's own: `evaluate: {metric: ./letters.py}`. Tested by `luthier check ./letters.py`."""

from collections import Counter

from luthier.evals.base import Metric


class Letters(Metric):
    """The share of the reference's letters that the answer has, in any order."""

    def score(self, prediction, record, reference):
        """Between 0 and 1, higher is better."""
        wanted = Counter(reference)
        return (wanted & Counter(prediction)).total() / max(1, wanted.total())


if __name__ == "__main__":
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from luthier.recipe import load_recipe
    from luthier.steps.run import run_recipe

    recipe = {"evaluate": {"metric": "./letters.py"}}
    with TemporaryDirectory() as folder:
        record = run_recipe(
            load_recipe({"extends": "small.yaml", **recipe}, base=Path(__file__).parent), Path(folder), []
        )
    print(f"{record['evaluation']['target']['mean']:.2f} of the letters")
