import pytest

from luthier.datasets.mix import Mix
from luthier.errors import RecipeError
from luthier.parts import build


def test_a_mix_holds_all_records_of_its_sets():
    mixed = build("dataset", {"kind": "mix", "of": [{"kind": "strings", "count": 3}, {"kind": "sums", "count": 2}]})
    separate = [build("dataset", {"kind": "strings", "count": 3}), build("dataset", {"kind": "sums", "count": 2})]
    assert isinstance(mixed, Mix)
    assert mixed.records() == [record for dataset in separate for record in dataset.records()]


def test_a_mistake_in_an_inner_set_is_named():
    with pytest.raises(RecipeError, match="no option `cuont`"):
        build("dataset", {"kind": "mix", "of": [{"kind": "strings", "cuont": 3}]})
