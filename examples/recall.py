"""A sampler of one's own: `generate: {sampler: ./recall.py}` in a step that does `generate`."""

from luthier.sampling.samplers.base import SamplerPart
from luthier.types import Trajectory


class Recall(SamplerPart):
    """Answers with what was asked, as a program that looks answers up would."""

    def make(self, asking):
        """A function of requests that gives each its continuation, as token ids."""

        def sample(requests, sampling, progress=None):
            return [
                Trajectory(self.answer(one, asking)[: sampling.max_new_tokens], "stop", one.record) for one in requests
            ]

        return sample

    def answer(self, request, asking):
        """The last message, backwards, and the token that ends an answer."""
        text = request.metadata["messages"][-1]["content"][::-1]
        return [*asking.tokenizer(text, add_special_tokens=False)["input_ids"], asking.end]


if __name__ == "__main__":
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from luthier.recipe import load_recipe
    from luthier.steps.run import run_recipe

    steps = {"answers": {"do": "generate", "generate": {"sampler": "./recall.py"}}}
    steps["learn"] = {"do": "train", "data": "answers"}
    with TemporaryDirectory() as folder:
        recipe = load_recipe({"extends": "small.yaml", "steps": steps}, base=Path(__file__).parent)
        record = run_recipe(recipe, Path(folder), [])
    print(f"learned {record['steps']['answers']['answers']} answers of another model")
