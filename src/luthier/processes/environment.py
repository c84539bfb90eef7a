"""The environment of the Python processes that we start."""

from __future__ import annotations

import os


def child_environment() -> dict[str, str]:
    """Our environment, with the current folder off the import path.

    `python -m` would put that folder first, and a user's own `random.py` or `json.py` in it before the library's.
    """
    return {**os.environ, "PYTHONSAFEPATH": "1"}
