"""Predicts the memory of a training before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from luthier.data.batches import group_by_record, positions
from luthier.models.config import text_config
from luthier.models.kernels.head import CACHED_BYTES, chunk_bytes
from luthier.models.kernels.lean import form_of
from luthier.types import Row

INNER_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")


@dataclass(frozen=True)
class Estimate:
    """Predicted peak in bytes, by its parts."""

    process: int
    weights: int
    optimizer: int
    gradients: int
    activations: int
    head: int

    @property
    def total(self) -> int:
        return self.process + self.weights + self.optimizer + self.gradients + self.activations + self.head


def largest_micro_batch(rows: Sequence[Row], records: int, tokens: int) -> int:
    """Positions, padding included, of the largest micro-batch that `records` records per update may need."""
    sizes = sorted((positions(record_rows, "padded") for record_rows in group_by_record(rows)), reverse=True)
    largest = sizes[:records]
    # A single record is never cut, even if it is larger than `tokens`.
    return max(largest[0], min(tokens, largest[0] * len(largest)))


def several_micro_batches(rows: Sequence[Row], records: int, tokens: int) -> bool:
    """Whether some update needs more than one micro-batch."""
    sizes = [positions(record_rows, "padded") for record_rows in group_by_record(rows)]
    return max(sizes) * min(records, len(sizes)) > tokens


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters, tied ones once."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


def estimate(
    module: nn.Module, tokens: int, *, process: int, several: bool, checkpointing: bool, frozen: int = 0
) -> Estimate:
    """Predict the peak of training `module` (also on the meta device), whose trained parameters require grad.

    Args:
        tokens: positions of the largest micro-batch, padding included.
        process: bytes in use before the model is loaded; 0 on a GPU.
        several: more than one micro-batch per update, whose gradients are summed in fp32.
        checkpointing: activations are computed again in the backward.
        frozen: bytes of frozen copies that references keep.
    """
    config = text_config(module)
    everything = list(module.parameters())
    trained = [p for p in everything if p.requires_grad]
    weights = weight_bytes(module) + frozen
    masters = sum(4 * p.numel() for p in trained if p.element_size() < 4)
    # AdamW keeps two moments per weight, in the master's type.
    moments = sum(2 * max(4, p.element_size()) * p.numel() for p in trained)
    gradients = sum((4 if several else p.element_size()) * p.numel() for p in trained)
    narrow = min(p.element_size() for p in everything)
    full = len(trained) == len(everything)
    return Estimate(
        process=process,
        weights=weights,
        optimizer=masters + moments,
        gradients=gradients,
        activations=tokens * _activation_bytes(module, config, narrow, full, checkpointing),
        head=_head_bytes(module, tokens, narrow, full),
    )


def _activation_bytes(module: nn.Module, config: Any, narrow: int, full: bool, checkpointing: bool) -> int:
    """Bytes kept per position for the backward of a pre-norm gated transformer.

    Per layer: two norms (input and output, and fp32 copies where `kernels/lean` has no form), q, k, v before and after
    rotation, the attention output, both residual sums, and three tensors of the gated MLP (four without a lean form).
    With frozen linear layers their inputs are still kept for the adapters.
    """
    # The lean forms exist on processors only.
    lean = not torch.cuda.is_available() and any(form_of(type(layer)) for layer in module.modules())
    width, inner = config.hidden_size, _inner_width(config)
    heads = getattr(config, "num_attention_heads", None) or 1
    head_width = getattr(config, "head_dim", None) or width // heads
    keys = (getattr(config, "num_key_value_heads", None) or heads) * head_width
    queries = heads * head_width
    norms = 2 * (2 * narrow + (0 if lean else 4)) * width
    attention = narrow * (3 * queries + 3 * keys + width)
    mlp = narrow * ((3 if lean else 4) * inner + width)
    adapters = 0 if full else narrow * width
    layer = norms + attention + mlp + adapters
    layers = config.num_hidden_layers
    # With checkpointing every layer keeps its input, and one layer at a time all the rest.
    return layers * width * narrow + layer if checkpointing else layers * layer


def _inner_width(config: Any) -> int:
    """Width of the MLP, whose key differs between model families; GPT-2 and Bloom leave it out, for four times D."""
    for name in INNER_WIDTHS:
        width = getattr(config, name, None)
        if isinstance(width, int):
            return width
    return 4 * config.hidden_size


def _head_bytes(module: nn.Module, tokens: int, narrow: int, full: bool) -> int:
    """Bytes of a chunk's logits; of a block's logits, probabilities and gradient in float32; of the head's gradient.

    The head's gradient is the output embedding's, or with few positions that of the logits. (An output embedding that
    is no plain linear layer, as with an adapter on it, takes three float32 copies of a chunk instead of a block.)
    """
    weight = module.get_output_embeddings().weight  # pyright: ignore
    vocabulary, width = weight.shape
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chunk = min(chunk_bytes(device), tokens * vocabulary * 4)
    gradient = tokens * vocabulary * narrow if tokens <= width else weight.numel() * (4 + narrow)
    block = min(chunk, CACHED_BYTES) if device.type == "cpu" else chunk
    return block * 3 + chunk * narrow // 4 + (gradient if full else 0)
