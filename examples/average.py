"""A verb of one's own, what a step of a pipeline does: `do: ./average.py`."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field

from luthier.steps.verbs.base import StepReference, Verb


class Average(Verb):
    """Leaves a model whose weights are the mean of those of other models."""

    LEAVES: ClassVar = ("model",)
    models: Annotated[list[str], StepReference("model"), Field(min_length=2, description="Steps that left the models.")]

    def run(self, work, stage, folder):
        """The mean is computed in float32; a run that goes on computes it once more."""
        models = [dict(work.merged_module(name).named_parameters()) for name in self.models]
        mean = {name: torch.stack([m[name].float() for m in models]).mean(0) for name in models[0]}
        module = work.free_module(self.models[0])
        for name, weight in module.named_parameters():
            weight.data.copy_(mean[name])
        work.leave_module(stage, module)
        work.note(stage, folder, {"models": self.models})


if __name__ == "__main__":
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from luthier import load_recipe, run

    steps = {"one": {"do": "train"}, "other": {"do": "train", "from": "base", "train": {"objective": "dft"}}}
    steps["mean"] = {"do": "./average.py", "models": ["one", "other"]}
    with TemporaryDirectory() as folder:
        recipe = load_recipe({"extends": "small.yaml", "steps": steps}, base=Path(__file__).parent)
        record = run(recipe, Path(folder), [])
    print(f"the mean of {record['steps']['mean']['models']}: {record['evaluation']['target']['mean']:.2f} right")
