"""Silences progress bars and notices of transformers."""

from __future__ import annotations


def quiet() -> None:
    """Keep transformers' bars and notices out of the output; its errors are still printed."""
    import warnings

    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
