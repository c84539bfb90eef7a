"""The policy of an encoder, or of several that are trained together: named vectors of each record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models.policy import Companion, cast_inputs
from luthier.types import Batch

PAIR = {"image": "image_embeds", "text": "text_embeds", "scale": "logit_scale", "bias": "logit_bias"}
"""Names of outputs in transformers' dual encoders (SigLIP, CLIP, ...), which our own follow."""


class EncoderPolicy:
    """An encoder as objectives see it.

    Args:
        module: its forward takes named tensors and returns a mapping of named tensors [R,...].
        inputs: argument of the forward → row stream of the batch.
        names: name in objectives → key of the forward's mapping, or a parameter of the module.
    """

    modality = "contrastive"

    def __init__(self, module: nn.Module, inputs: Mapping[str, str], names: Mapping[str, str] = PAIR):
        self.module = module
        self.inputs = dict(inputs)
        self.names = dict(names)
        self.references: dict[str, Any] = {}
        self.companions: dict[str, Companion] = {}

    def outputs(self, batch: Batch, names: Sequence[str]) -> dict[str, Tensor]:
        """Outputs by name, [R,...] each. A parameter of the module is repeated for every record.

        Raises:
            ModelError: the encoder has no such output.
        """
        streams = {argument: batch.streams[stream].values for argument, stream in self.inputs.items()}
        module_outputs = self.module(**cast_inputs(self.module, streams))
        outputs = {}
        for name in names:
            key = self.names.get(name, name)
            if key in module_outputs:
                outputs[name] = module_outputs[key]
            elif isinstance(parameter := getattr(self.module, key, None), nn.Parameter):
                # One per record, so that an output is cut and gathered by records like any other.
                outputs[name] = parameter.reshape(1).expand(len(batch.examples))
            else:
                known = ", ".join(map(str, module_outputs))
                raise ModelError(
                    f"{type(self.module).__name__} has no output `{key}` (asked for as `{name}`).",
                    f"Its outputs: {known}. Name the right one in `names` of EncoderPolicy.",
                )
        return outputs
