"""Digits: the same for the same seed, told apart by eye and by the nearest class mean."""

import numpy

from luthier.vision.digits import CLASSES, GLYPHS, SIDE, digit_rows, draw_digit


def test_drawn_from_the_seed_alone():
    first, again, other = digit_rows(20, 3), digit_rows(20, 3), digit_rows(20, 4)
    assert all(
        numpy.array_equal(a.streams["image"].values, b.streams["image"].values)
        for a, b in zip(first, again, strict=True)
    )
    assert not numpy.array_equal(first[0].streams["image"].values, other[0].streams["image"].values)
    assert len({row.id for row in [*first, *other]}) == 40


def test_form():
    rows = digit_rows(25)
    image = rows[0].streams["image"].values
    assert image.shape == (1, SIDE, SIDE) and image.dtype == numpy.float32 and len(rows[0].ids) == 0
    assert image.min() >= -1 and image.max() <= 1
    assert [int(row.streams["label"].values) for row in rows[:12]] == [*range(CLASSES), 0, 1]
    assert all(len(glyph) == 6 and {len(line) for line in glyph} == {4} for glyph in GLYPHS)


def test_digits_differ_within_a_class_and_can_be_told_apart():
    def stacked(rows):
        return numpy.stack([row.streams["image"].values.ravel() for row in rows])

    train, test = digit_rows(600), digit_rows(200, 1)
    means = numpy.stack([stacked(train[label::CLASSES]).mean(0) for label in range(CLASSES)])
    nearest = ((stacked(test)[:, None] - means[None]) ** 2).sum(-1).argmin(1)
    accuracy = (nearest == numpy.array([int(row.streams["label"].values) for row in test])).mean()
    assert 0.6 < accuracy < 1.0  # neither noise nor ten fixed pictures


def test_ink_lies_where_the_glyph_is():
    flat = draw_digit(1, numpy.random.default_rng(0))
    assert flat[:, 3:5].mean() > flat[:, :2].mean() + 0.5  # a one stands in the middle
