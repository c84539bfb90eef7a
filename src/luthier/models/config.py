"""The configuration of a model's language part."""

from __future__ import annotations

from typing import Any


def text_config(model_or_config: Any) -> Any:
    """The text decoder's configuration: the inner one in a model of text and images, else the model's.

    Args:
        model_or_config: a module with `config`, or a configuration of transformers.
    """
    config = getattr(model_or_config, "config", model_or_config)
    inner = getattr(config, "text_config", None)
    if inner is not None:
        return inner
    # Composite configurations of other names (`decoder`, `generator`); transformers knows them.
    lookup = getattr(config, "get_text_config", None)
    return config if lookup is None else lookup(decoder=True)


def context_of(model_or_config: Any) -> int | None:
    """Positions that the text decoder can take, or None where its configuration has no bound."""
    config = text_config(model_or_config)
    for name in ("max_position_embeddings", "max_seq_len"):
        bound = getattr(config, name, None)
        if isinstance(bound, int) and bound > 0:  # XLNet writes -1
            return bound
    return None


def embedded_tokens(module: Any) -> int | None:
    """How many token ids the model's input embedding knows; None where it is no table."""
    try:
        table = module.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    number = getattr(table, "num_embeddings", None)
    weight = getattr(table, "weight", None)
    return number if number is not None or weight is None else weight.shape[0]
