"""What every key of a recipe must have: a description that says more than its name."""

from __future__ import annotations

import re
from collections.abc import Iterator

from luthier.recipe.merge import block_types
from luthier.recipe.settings import Block

WORDS = 5
"""A description has at least so many words that are not in the key's name."""


def description_faults(block: type[Block], path: str = "") -> Iterator[str]:
    """Keys of a block, and of the blocks within, without a description, or with one that only repeats the name."""
    for name, field in block.model_fields.items():
        key = f"{path}{name}"
        words = set(re.findall(r"\w+", (field.description or "").lower())) - set(name.split("_"))
        if not field.description:
            yield f"{key}: has no description"
        elif len(words) < WORDS:
            yield f"{key}: its description says little more than its name: {field.description}"
        elif not field.description.endswith("."):
            yield f"{key}: its description is no sentence: {field.description}"
        for inner in block_types(field.annotation):
            yield from description_faults(inner, f"{key}.")
