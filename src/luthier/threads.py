"""How torch's threads wait for each other on a processor that other programs use too."""

from __future__ import annotations

import os
import sys

SPINS = "GOMP_SPINCOUNT"
OTHERS = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")

ENOUGH = "3000"
"""Turns of the waiting loop: some microseconds, which bridge the gaps between the layers of a model."""

_torch_was_first = False


def limit_spinning() -> None:
    """Let OpenMP's threads sleep soon where they wait, unless the environment already says how they wait.

    By default they spin for milliseconds. With a second program on the same cores they spin for partners that are not
    running, and a training takes ten times as long. The variable is read when torch is loaded, and child processes
    inherit it.
    """
    global _torch_was_first
    if any(name in os.environ for name in (SPINS, *OTHERS)):
        return
    _torch_was_first = "torch" in sys.modules
    if not _torch_was_first:
        os.environ[SPINS] = ENOUGH


def spinning_warning() -> str:
    """A sentence for the user where torch was loaded before it could be told how to wait; empty elsewhere."""
    if not _torch_was_first:
        return ""
    return (
        f"torch was imported before luthier, so its threads wait by spinning: slow beside another program. Import"
        f" luthier first, or set {SPINS}={ENOUGH}."
    )
