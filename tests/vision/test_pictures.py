"""Pictures without a library: read back by one."""

import base64
import io

import numpy
import pytest

from luthier.vision.pictures import as_text, grid, pixels, png

image = pytest.importorskip("PIL.Image")


def opened(file):
    with image.open(io.BytesIO(file)) as picture:
        return numpy.array(picture)


@pytest.mark.parametrize("channels, shape", [(1, (5, 7)), (3, (5, 7, 3)), (16, (5, 7, 3)), (2, (5, 7))])
def test_a_png_holds_the_values(channels, shape):
    values = numpy.random.default_rng(0).uniform(-1.2, 1.2, (channels, 5, 7))
    picture = pixels(values)
    assert picture.shape == shape and picture.dtype == numpy.uint8 and picture.min() == 0 and picture.max() == 255
    assert numpy.array_equal(opened(png(picture)), picture)
    assert numpy.array_equal(opened(base64.b64decode(as_text(picture).split(",")[1])), picture)


def test_the_span_is_what_is_white():
    values = numpy.array([[[-3.0, 0.0, 3.0]]])
    assert pixels(values, 3.0).tolist() == [[0, 128, 255]] and pixels(values, 6.0).tolist() == [[64, 128, 191]]


def test_a_grid_keeps_every_picture():
    many = [numpy.full((2, 2), 20 * index, dtype=numpy.uint8) for index in range(1, 6)]
    sheet = grid(many, columns=3, scale=2)
    assert sheet.shape == (2 * 3 * 2, 3 * 3 * 2)
    assert [int(sheet[3 + 6 * (i // 3), 3 + 6 * (i % 3)]) for i in range(5)] == [20, 40, 60, 80, 100]
