"""Arrays as pictures: PNG without a library, whole grids of them, and as text that a page can hold."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy


def pixels(values: numpy.ndarray, span: float = 1.0) -> numpy.ndarray:
    """Bytes [H,W] or [H,W,3] of an array [C,H,W] in [-span, span]; of four channels and more the first three."""
    kept = values[:3] if len(values) >= 3 else values[:1]
    scaled = ((kept.astype(numpy.float64) / span + 1) * 127.5).round().clip(0, 255).astype(numpy.uint8)
    return scaled[0] if len(kept) == 1 else scaled.transpose(1, 2, 0)


def png(shown: numpy.ndarray) -> bytes:
    """A PNG file of bytes [H,W] (grey) or [H,W,3]."""
    height, width = shown.shape[:2]
    lines = b"".join(b"\0" + numpy.ascontiguousarray(line).tobytes() for line in shown)
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if shown.ndim == 2 else 2, 0, 0, 0)
    pieces = ((b"IHDR", head), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in pieces
    )


def as_text(shown: numpy.ndarray) -> str:
    """A picture as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png(shown)).decode()}"


def grid(pictures: Sequence[numpy.ndarray], columns: int = 10, scale: int = 4) -> numpy.ndarray:
    """Pictures of one size beside and below each other, each pixel `scale` wide, with a border between."""
    framed = [numpy.pad(one, [(1, 0), (1, 0)] + [(0, 0)] * (one.ndim - 2), constant_values=128) for one in pictures]
    empty = numpy.full_like(framed[0], 128)
    framed += [empty] * (-len(framed) % columns)
    lines = [numpy.concatenate(framed[at : at + columns], 1) for at in range(0, len(framed), columns)]
    return numpy.concatenate(lines, 0).repeat(scale, 0).repeat(scale, 1)
