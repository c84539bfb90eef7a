"""One exchange with a server: a deadline for all of it, a bound of its size, and no redirects."""

from __future__ import annotations

import functools
import http.client
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Any

LONGEST_MESSAGE = 4096  # bytes of an error's body that are read
PIECE = 2**16


class ErrorStatus(Exception):
    """The server answers with an error; `code` is its status."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


class Redirected(Exception):
    """The server sends the request to another address, which would get its key and its prompts."""


class TooLong(Exception):
    """The reply is longer than a completion can be."""


class TimedOut(Exception):
    """The exchange was not over within its limit of time."""


def exchange(call: urllib.request.Request, limit: float, most: int) -> bytes:
    """The body of a server's reply.

    Args:
        call: the request.
        limit: seconds for all of it; a timeout of the socket alone begins anew with every byte.
        most: bytes of the body that are read.

    Raises:
        ErrorStatus: a status of 400 or more.
        Redirected, TooLong, TimedOut: see there.
        OSError, http.client.HTTPException: no connection, or no HTTP.
    """
    with _Deadline(limit) as deadline:
        opener = urllib.request.build_opener(_NoRedirect, _Http(deadline.watch), _Https(deadline.watch))
        body = b""
        try:
            body = _open(opener, call, limit, most)
        except (OSError, http.client.HTTPException):
            if not deadline.over:
                raise
        # A connection that is shut down within the headers looks like a short reply.
        if deadline.over:
            raise TimedOut(f"no complete reply within {limit:g} s")
        return body


def _open(opener: urllib.request.OpenerDirector, call: urllib.request.Request, limit: float, most: int) -> bytes:
    try:
        with opener.open(call, timeout=limit) as response:
            return _read(response, most)
    except urllib.error.HTTPError as error:
        with error:
            message = error.read(LONGEST_MESSAGE).decode(errors="replace")
        raise ErrorStatus(error.code, f"{error.code} {error.reason}: {message}") from None


def _read(response: Any, most: int) -> bytes:
    pieces, size = [], 0
    while piece := response.read(min(PIECE, most + 1 - size)):
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise TooLong(f"the reply is longer than {most:,} bytes")
    # `read` with a size does not say that the server promised more.
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(pieces)


class _Deadline:
    """Shuts the connection down when time is up, whatever it is doing."""

    def __init__(self, seconds: float):
        self.over = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def watch(self, connection: http.client.HTTPConnection) -> None:
        if connection.sock is not None:
            self._sockets.append(connection.sock)

    def _end(self) -> None:
        self.over = True
        for watched in self._sockets:
            with suppress(OSError):
                watched.shutdown(socket.SHUT_RDWR)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        raise Redirected(f"{code}: it redirects to {newurl}")


class _Watching:
    """Gives the deadline its connection, which urllib makes and hides."""

    def __init__(self, *arguments: Any, watch: Callable[[Any], None], **options: Any):
        super().__init__(*arguments, **options)
        self._watch = watch

    def connect(self) -> None:
        super().connect()  # pyright: ignore[reportAttributeAccessIssue]
        self._watch(self)


class _Watched(_Watching, http.client.HTTPConnection):
    pass


class _WatchedTls(_Watching, http.client.HTTPSConnection):
    pass


class _Http(urllib.request.HTTPHandler):
    def __init__(self, watch: Callable[[Any], None]):
        super().__init__()
        self._connection: Any = functools.partial(_Watched, watch=watch)

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self._connection, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, watch: Callable[[Any], None]):
        super().__init__()
        self._connection: Any = functools.partial(_WatchedTls, watch=watch)

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self._connection, req)
