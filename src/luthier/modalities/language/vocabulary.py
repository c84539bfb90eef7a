"""Token ids compared with the embedding: an id beyond it ends in an index error, or on a GPU in a broken process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from luthier.errors import ModelError
from luthier.models.config import embedded_tokens
from luthier.types import Record, Row

HINT = (
    "The tokenizer has more tokens than the model: take the tokenizer that the model was trained with, or enlarge the "
    "model once by `model.resize_token_embeddings(len(tokenizer))` and save it."
)


def refuse_unknown_ids(
    module: nn.Module, tokenizer: Any, rows: Iterable[Row], records: Mapping[str, Record] | None = None
) -> None:
    """Raise ModelError for a row with a token id that the embedding lacks; padding is never read, so it may be any.

    Args:
        module: the model, on any device, also without weights.
        records: by id, to name the line of a row's record.
    """
    size = embedded_tokens(module)
    if size is None:
        return
    for row in rows:
        if len(row.ids) and (largest := int(row.ids.max())) >= size:
            record = (records or {}).get(row.record)
            where = f"record {row.record}" + (f" ({record.origin})" if record is not None else "")
            raise ModelError(f"The token {_described(tokenizer, largest, size)}; it is in {where}.", HINT)


def _described(tokenizer: Any, token: int, size: int) -> str:
    text = tokenizer.convert_ids_to_tokens(token)
    return f"{text!r} has the id {token}, and the model's embedding has {size} rows (ids 0 to {size - 1})"
