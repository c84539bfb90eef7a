"""A tuner of one's own: `train: {tuner: ./norms.py}`. Tested by `luthier check ./norms.py`."""

from luthier.tuners.base import Tuner


class Norms(Tuner):
    """Trains the scales of the normalisation layers and nothing else."""

    def apply(self, model, plan):
        """The model with these parameters trainable; the engine has frozen everything before."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("norm" in name)
        return model

    def save(self, model, masters, folder):
        """A folder for `from_pretrained`."""
        model.save_pretrained(folder)


if __name__ == "__main__":
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from luthier.recipe import load_recipe
    from luthier.steps.run import run_recipe

    recipe = {"train": {"tuner": "./norms.py"}}
    with TemporaryDirectory() as folder:
        record = run_recipe(
            load_recipe({"extends": "small.yaml", **recipe}, base=Path(__file__).parent), Path(folder), []
        )
    print(f"{record['train']['trainable_parameters']} parameters were trained")
