"""What objectives are trained under besides the matrix."""

import pytest

from luthier.models.context import checkpoint_layers
from luthier.steps import conformance


@pytest.fixture
def checkpointed(monkeypatch):
    """`conformance.trained`, of a model whose layers are computed again in the backward."""
    plain = conformance.tiny_model

    def model(*arguments, **options):
        made = plain(*arguments, **options)
        checkpoint_layers(made)
        assert made.model.layers[0].gradient_checkpointing
        return made

    def trained(*arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(conformance, "tiny_model", model)
            return conformance.trained(*arguments, **options)

    return trained
