"""The memory that a training will take, before it starts."""

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
    """Predicted peak in bytes, by what takes it."""

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
    """Positions of the largest micro-batch that padding `records` rows per update may give."""
    rows_by_record = sorted((positions(record_rows, "padded") for record_rows in group_by_record(rows)), reverse=True)[
        :records
    ]
    return max(rows_by_record[0], min(tokens, rows_by_record[0] * len(rows_by_record)))


def several_micro_batches(rows: Sequence[Row], records: int, tokens: int) -> bool:
    """Whether some update needs more than one micro-batch."""
    rows_by_record = [positions(record_rows, "padded") for record_rows in group_by_record(rows)]
    return max(rows_by_record) * min(records, len(rows_by_record)) > tokens


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters, tied ones once."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


def estimate(
    module: nn.Module, tokens: int, *, process: int, several: bool, checkpointing: bool, frozen: int = 0
) -> Estimate:
    """Predict the peak of training `module` (also on the meta device), whose trained parameters require grad.

    Args:
        process: bytes in use before the model is loaded; 0 on a GPU.
        tokens: positions of the largest micro-batch, padding included.
        several: more than one micro-batch per update (gradients are then summed in fp32).
        frozen: bytes that references keep of the model as it was.
    """
    config = text_config(module)
    everything = list(module.parameters())
    trained = [p for p in everything if p.requires_grad]
    weights = weight_bytes(module) + frozen
    masters = sum(4 * p.numel() for p in trained if p.element_size() < 4)
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

    Per layer: two norms (input and output; a plain one its fp32 copies too), q, k, v before and after rotation,
    the attention output, both residual sums, and three tensors of the gated MLP (four of a plain one). With
    frozen linears their inputs are still kept for the adapters.
    """
    lean = not torch.cuda.is_available() and any(form_of(type(piece)) for piece in module.modules())
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
    return layers * width * narrow + layer if checkpointing else layers * layer


def _inner_width(config: Any) -> int:
    """Width of the MLP, by whatever name the model family gives it; GPT-2 and Bloom leave it at four times D."""
    named = (getattr(config, name, None) for name in INNER_WIDTHS)
    return next((width for width in named if isinstance(width, int)), 4 * config.hidden_size)


def _head_bytes(module: nn.Module, tokens: int, narrow: int, full: bool) -> int:
    """Logits of a chunk; of what is made of them at once, logits, probabilities and gradient in float32; and `own`.

    `own`: the output embedding's gradient, or the slopes that make it. (One that is no plain linear layer, an adapter
    on it for instance, takes three float32 copies of a chunk instead of a block.)
    """
    weight = module.get_output_embeddings().weight  # pyright: ignore
    vocabulary, width = weight.shape
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chunk = min(chunk_bytes(device), tokens * vocabulary * 4)
    own = tokens * vocabulary * narrow if tokens <= width else weight.numel() * (4 + narrow)
    at_once = min(chunk, CACHED_BYTES) if device.type == "cpu" else chunk
    return at_once * 3 + chunk * narrow // 4 + (own if full else 0)
