"""Token ids compared with the embedding: an id beyond it ends in an index error, or on a GPU in a broken process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from luthier.errors import ModelError
from luthier.types import Record, Row

HINT = (
    "The tokenizer has more tokens than the model: take the tokenizer that the model was trained with, or enlarge the "
    "model once by `model.resize_token_embeddings(len(tokenizer))` and save it."
)


def refuse_unknown_ids(
    module: nn.Module, tokenizer: Any, rows: Iterable[Row], records: Mapping[str, Record] | None = None
) -> None:
    """Raise ModelError for a row with a token id that the embedding lacks, or for such a padding token.

    Args:
        module: the model, on any device, also without weights.
        records: by id, to name the line of a row's record.
    """
    size = embedding_rows(module)
    if size is None:
        return
    pad = tokenizer.pad_token_id
    if pad is not None and pad >= size:
        raise ModelError(f"The padding token {_described(tokenizer, pad, size)}.", HINT)
    for row in rows:
        if len(row.ids) and (largest := int(row.ids.max())) >= size:
            record = (records or {}).get(row.record)
            where = f"record {row.record}" + (f" ({record.origin})" if record is not None else "")
            raise ModelError(f"The token {_described(tokenizer, largest, size)}; it is in {where}.", HINT)


def embedding_rows(module: nn.Module) -> int | None:
    """Number of ids that the input embedding has; None for a model without one."""
    try:
        weight = getattr(module.get_input_embeddings(), "weight", None)  # pyright: ignore[reportCallIssue]
    except (AttributeError, NotImplementedError):
        return None
    return None if weight is None or weight.dim() != 2 else int(weight.shape[0])


def _described(tokenizer: Any, token: int, size: int) -> str:
    text = tokenizer.convert_ids_to_tokens(token)
    return f"{text!r} has the id {token}, and the model's embedding has {size} rows (ids 0 to {size - 1})"
