"""Digits of 8×8 pixels drawn by a program: a picture data set without a download or a licence."""

from __future__ import annotations

import numpy

from luthier.types import Row, Stream

SIDE, CLASSES = 8, 10
GLYPHS = (
    (".##.", "#..#", "#..#", "#..#", "#..#", ".##."),
    ("..#.", ".##.", "..#.", "..#.", "..#.", ".###"),
    (".##.", "#..#", "...#", "..#.", ".#..", "####"),
    ("###.", "...#", ".##.", "...#", "...#", "###."),
    ("..##", ".#.#", "#..#", "####", "...#", "...#"),
    ("####", "#...", "###.", "...#", "#..#", ".##."),
    (".##.", "#...", "###.", "#..#", "#..#", ".##."),
    ("####", "...#", "..#.", "..#.", ".#..", ".#.."),
    (".##.", "#..#", ".##.", "#..#", "#..#", ".##."),
    (".##.", "#..#", "#..#", ".###", "...#", ".##."),
)


def draw_digit(label: int, generator: numpy.random.Generator) -> numpy.ndarray:
    """One digit, float32 [8,8], from -1 (paper) to 1 (ink), at random moved and slanted, with uneven ink and noise."""
    glyph = (numpy.array([list(line) for line in GLYPHS[label]]) == "#").astype(numpy.float64)
    down, right = 1 + generator.uniform(-0.7, 0.7), 2 + generator.uniform(-0.7, 0.7)
    slant = generator.uniform(-0.25, 0.25)
    rows, columns = numpy.mgrid[0:SIDE, 0:SIDE].astype(numpy.float64)
    ink = _interpolate(glyph, rows - down, columns - right - slant * (SIDE / 2 - rows))
    ink = ink * generator.uniform(0.8, 1.0) + generator.normal(0.0, 0.03, ink.shape)
    return (2 * ink.clip(0.0, 1.0) - 1).astype(numpy.float32)


def _interpolate(glyph: numpy.ndarray, rows: numpy.ndarray, columns: numpy.ndarray) -> numpy.ndarray:
    """The glyph at fractional rows and columns, by bilinear interpolation; 0 outside."""
    # Clipped to just below the last index, as `top + 1` and `left + 1` are read too.
    framed = numpy.pad(glyph, 2)
    rows = (rows + 2).clip(0, framed.shape[0] - 1.001)
    columns = (columns + 2).clip(0, framed.shape[1] - 1.001)
    top, left = rows.astype(int), columns.astype(int)
    down, right = rows - top, columns - left
    upper = framed[top, left] * (1 - right) + framed[top, left + 1] * right
    lower = framed[top + 1, left] * (1 - right) + framed[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def digit_rows(count: int, seed: int = 0, classes: int = CLASSES) -> list[Row]:
    """`count` digits of the first `classes` classes in turn, drawn from `seed`.

    Row streams: `image` float32 [1,8,8] in [-1,1] and `label` int64. There are no tokens: `ids` is empty.
    """
    # One generator for all, drawn from in order: a smaller count gives the first digits of a larger one.
    generator = numpy.random.default_rng(seed)
    rows = []
    for index in range(count):
        label = index % classes
        image = draw_digit(label, generator)[None]
        streams = {"image": Stream(image, "row"), "label": Stream(numpy.int64(label), "row")}
        rows.append(Row(f"digit-{seed}-{index}", numpy.zeros(0, dtype=numpy.int32), streams))
    return rows
