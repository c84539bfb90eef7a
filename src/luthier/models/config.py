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
