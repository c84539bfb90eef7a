"""SIGTERM and Ctrl-C ask a run to save its state and end."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Ended(BaseException):
    """The run ends at once: it was asked to where nothing needs saving, or it was asked twice.

    A BaseException, so that no `except Exception` on the way catches it.
    """


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
        """Inside this block nothing needs saving, so a request to stop, also an earlier one, raises `Ended` at once."""
        if self.asked:
            raise Ended
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def ask(self, *_: Any) -> None:
        """Handle the signal: end after the update in progress, or raise `Ended`."""
        if self._at_once or self.asked:
            raise Ended
        self.asked = True
        print("\nstopping after the update in progress; once more to end at once", file=sys.stderr)


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """A `Stop` that SIGTERM and Ctrl-C ask; outside of the main thread, which alone can handle signals, nobody does."""
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
