"""Nothing but our own words on the screen."""

from __future__ import annotations


def quiet() -> None:
    """Keep transformers' own bars and notices out of our output; its errors still reach us."""
    import warnings

    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
