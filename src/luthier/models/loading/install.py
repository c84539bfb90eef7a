"""Copies the weights of a run into the package: `python -m luthier.models.loading.install RUN/model NAME`."""

from __future__ import annotations

import argparse
from pathlib import Path

from luthier.recipe.modality import PACKAGED, model_folder


def install(trained: Path, folder: Path) -> None:
    """Copy weights below `trained` to the same relative paths below `folder`, as bfloat16; configs are not copied."""
    import torch
    from safetensors.torch import load_file, save_file

    for file in sorted(trained.rglob("*.safetensors")):
        target = folder / file.relative_to(trained)
        rounded = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in load_file(file).items()}
        save_file(rounded, target, metadata={"format": "pt"})
        print(f"{target}: {sum(tensor.numel() for tensor in rounded.values()):,} weights")


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Copy trained weights of a packaged model into the package.")
    parser.add_argument("trained", type=Path, help="the `model` folder of a run of the recipe of that name")
    parser.add_argument("name", choices=PACKAGED)
    arguments = parser.parse_args()
    install(arguments.trained, model_folder(arguments.name, Path()))


if __name__ == "__main__":
    main()
