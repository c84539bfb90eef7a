"""Orders, draws and seeds that depend on a key alone, so that processes, machines and the order of work change none.

A key is one or several pieces. They are joined by `/`, so that `seed63(7, "a")` hashes the text `7/a`; bytes stay as
they are. The hash is BLAKE2b (RFC 7693). Recorded results depend on every number here: a new use takes one of these
functions, and none of them changes.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Piece = str | int | bytes


def order(*key: Piece) -> bytes:
    """Eight bytes to sort by: sorting things by their own keys is a shuffle that only the keys decide."""
    return _digest(key, 8)


def hash64(*key: Piece, byteorder: Literal["little", "big"] = "little") -> int:
    """A number in [0, 2^64). Sorting by the big-endian number is sorting by `order`."""
    return int.from_bytes(_digest(key, 8), byteorder)


def signed64(*key: Piece) -> int:
    """The bits of `hash64` as a number in [-2^63, 2^63), which fits a tensor of int64."""
    return int.from_bytes(_digest(key, 8), "little", signed=True)


def seed63(*key: Piece) -> int:
    """A seed in [0, 2^63) for a sampler: a server that reads seeds as int64 takes it too."""
    return hash64(*key) >> 1


def seed56(*key: Piece) -> int:
    """A seed in [0, 2^56) for a generator of torch: another hash, of seven bytes, than that of the other functions."""
    return int.from_bytes(_digest(key, 7), "little")


def uniform53(*key: Piece) -> float:
    """A number in [0, 1), a multiple of 2^-53: each of them is a float64 without rounding."""
    return (hash64(*key) >> 11) / 2**53


def sha256_number(text: str, count: int) -> int:
    """The first `count` bytes of the SHA-256 of a text, big-endian, in [0, 256^count).

    The splits of data sets and the noise of a denoiser's validation were first drawn by this hash.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:count], "big")


def _digest(key: tuple[Piece, ...], size: int) -> bytes:
    pieces = [piece if isinstance(piece, bytes) else str(piece).encode() for piece in key]
    return hashlib.blake2b(b"/".join(pieces), digest_size=size).digest()
