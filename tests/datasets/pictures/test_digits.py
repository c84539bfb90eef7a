"""The digits of a recipe: their forms, their seed, and how many."""

import numpy

from luthier.parts import build


def test_digits_carry_their_class_in_every_form():
    rows = build("dataset", {"kind": "digits", "count": 12, "classes": 5}).rows()
    assert len(rows) == 12 and len(build("dataset", {"kind": "digits", "count": 7, "classes": 5}).rows()) == 7
    held = {name: stream.values for name, stream in rows[8].streams.items()}
    assert held["label"] == 3 and held["caption"].tolist() == [0, 5, 1]
    assert held["pooled"].tolist() == [0, 0, 0, 1, 0] and held["text"].shape == (1, 5) and held["text"][0, 3] == 1
    other = build("dataset", {"kind": "digits", "count": 12, "classes": 5, "seed": 1}).rows()
    assert not numpy.array_equal(other[8].streams["image"].values, held["image"])
