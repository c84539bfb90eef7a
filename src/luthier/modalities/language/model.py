"""A recipe's language model with its data: what answers, columns and rollouts work with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from luthier.data.prepare import Prepared
from luthier.data.render import Renderer
from luthier.models.loading.load import Loaded
from luthier.recipe import Recipe


@dataclass(frozen=True)
class LanguageModel:
    """A recipe's language model, its rows, and what renders and decodes its text."""

    recipe: Recipe
    device: torch.device
    loaded: Loaded
    prepared: Prepared
    renderer: Renderer

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self.loaded.tokenizer.decode(ids, skip_special_tokens=True)
