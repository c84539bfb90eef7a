"""Arrays as pictures: PNG files without a library, contact sheets, and data URIs for HTML pages."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy


def pixels(values: numpy.ndarray, span: float = 1.0) -> numpy.ndarray:
    """An array [C,H,W] in [-span, span] as uint8: grey [H,W] for C < 3, else [H,W,3] of the first three channels."""
    channels = values[:3] if len(values) >= 3 else values[:1]
    scaled = ((channels.astype(numpy.float64) / span + 1) * 127.5).round().clip(0, 255).astype(numpy.uint8)
    return scaled[0] if len(channels) == 1 else scaled.transpose(1, 2, 0)


def png(picture: numpy.ndarray) -> bytes:
    """A PNG file of a uint8 picture [H,W] (grey) or [H,W,3] (RGB)."""
    height, width = picture.shape[:2]
    # Every line begins with the number of its filter; 0 means that the bytes are unfiltered.
    lines = b"".join(b"\0" + numpy.ascontiguousarray(line).tobytes() for line in picture)
    colour_type = 0 if picture.ndim == 2 else 2
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    file = bytearray(b"\x89PNG\r\n\x1a\n")
    for name, content in ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")):
        file += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return bytes(file)


def as_text(picture: numpy.ndarray) -> str:
    """A uint8 picture as a data URI, which an HTML page can hold."""
    return f"data:image/png;base64,{base64.b64encode(png(picture)).decode()}"


def grid(pictures: Sequence[numpy.ndarray], columns: int = 10, scale: int = 4) -> numpy.ndarray:
    """A contact sheet: pictures of one size in `columns`, each pixel `scale` wide, with grey borders between them."""
    framed = []
    for picture in pictures:
        border = [(1, 0), (1, 0)] + [(0, 0)] * (picture.ndim - 2)
        framed.append(numpy.pad(picture, border, constant_values=128))
    empty = numpy.full_like(framed[0], 128)
    framed += [empty] * (-len(framed) % columns)
    lines = [numpy.concatenate(framed[start : start + columns], 1) for start in range(0, len(framed), columns)]
    return numpy.concatenate(lines, 0).repeat(scale, 0).repeat(scale, 1)
