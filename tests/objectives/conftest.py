"""What objectives are trained under besides the matrix."""

from dataclasses import replace

import pytest

from luthier.conformance import tiny, training
from luthier.models.context import checkpoint_layers


@pytest.fixture
def checkpointed(monkeypatch):
    """`training.trained`, of a model whose layers are computed again in the backward."""
    plain = tiny.tiny_model

    def model(*arguments, **options):
        made = plain(*arguments, **options)
        checkpoint_layers(made)
        assert made.model.layers[0].gradient_checkpointing
        return made

    def trained(*arguments, **options):
        with monkeypatch.context() as patch:
            patch.setitem(tiny.TINY_MODELS, "language", replace(tiny.TINY_MODELS["language"], module=model))
            return training.trained(*arguments, **options)

    return trained
