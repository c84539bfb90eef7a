"""A subset of one's own, in a pipeline: of sampled and gold answers to a record, the shortest."""

from luthier.select.records.base import Subset, by_record


class Shortest(Subset):
    """Keeps the candidate with the fewest tokens of each record."""

    def choose(self, candidates, columns, seed):
        """Places of the candidates to keep."""
        groups = by_record(candidates).values()
        return [min(places, key=lambda place: (len(candidates[place].row), place)) for places in groups]


if __name__ == "__main__":
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from luthier.recipe import load_recipe
    from luthier.steps.run import run_recipe

    recipe = {
        "steps": {
            "answers": {"do": "generate", "generate": {"temperature": 1.0}},
            "kept": {"do": "select", "data": ["answers", "data"], "subset": "./shortest.py"},
            "train": {"data": "kept"},
        }
    }
    with TemporaryDirectory() as folder:
        record = run_recipe(
            load_recipe({"extends": "small.yaml", **recipe}, base=Path(__file__).parent), Path(folder), []
        )
    print(record["steps"]["kept"])
