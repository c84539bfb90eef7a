"""SIGTERM and Ctrl-C: a run saves its state and ends."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Ended(BaseException):
    """The run was asked to end where ending at once loses nothing, or was asked twice."""


class Stop:
    """Whether a run was asked to end."""

    def __init__(self) -> None:
        self.asked = False
        self._at_once = False

    def requested(self) -> bool:
        """Whether to end after the update in progress."""
        return self.asked

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A stretch of work without state to save: to be asked there, or before, raises `Ended`."""
        if self.asked:
            raise Ended
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def ask(self, *_: Any) -> None:
        """The signal handler."""
        if self._at_once or self.asked:
            raise Ended
        self.asked = True
        print("\nstopping after the update in progress; once more to end at once", file=sys.stderr)


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """SIGTERM and Ctrl-C are asking (where signals can be caught: in the main thread)."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {name: signal.signal(name, stop.ask) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
