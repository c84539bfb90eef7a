"""Records that are arrays: files read, columns renamed, splits by content, and what cannot be used."""

import numpy
import pytest
import torch
from safetensors.torch import save_file

from luthier.data.arrays import content_hash, load_rows, prepare_rows
from luthier.data.sources import load_records
from luthier.errors import DataError
from luthier.recipe.settings import Data


def arrays(count=20, seed=0):
    draw = numpy.random.default_rng(seed)
    return {"latent": draw.standard_normal((count, 2, 3)), "label": draw.integers(0, 4, count)}


def saved(folder, name="some.npz", **more):
    held = {**arrays(), **more}
    if name.endswith(".npz"):
        numpy.savez(folder / name, **held)
    else:
        save_file({key: torch.from_numpy(values) for key, values in held.items()}, folder / name)
    return {"path": str(folder / name)}


@pytest.mark.parametrize("name", ["some.npz", "some.safetensors"])
def test_each_array_is_a_row_stream(name, tmp_path):
    rows = load_rows(saved(tmp_path, name), tmp_path)
    assert len(rows) == len({row.id for row in rows}) == 20 and len(rows[0].ids) == 0
    assert rows[3].streams["latent"].values == pytest.approx(arrays()["latent"][3], abs=1e-6)
    assert rows[3].streams["latent"].values.dtype == numpy.float32 and rows[3].streams["latent"].axis == "row"
    assert rows[3].streams["label"].values == arrays()["label"][3] and rows[3].streams["label"].values.ndim == 0


def test_columns_rename_and_a_limit_takes_the_same_ones_from_less(tmp_path):
    source = {**saved(tmp_path), "columns": {"condition": "label"}}
    rows = load_rows(source, tmp_path)
    assert set(rows[0].streams) == {"latent", "condition"}
    few, more = ({row.id for row in load_rows({**source, "limit": limit}, tmp_path)} for limit in (4, 9))
    assert len(few) == 4 and few < more


def test_the_split_is_by_content(tmp_path):
    source = saved(tmp_path)
    whole = prepare_rows(Data(train=source, validation=3, test="25%"), tmp_path)
    assert len(whole.validation) == 3 and len(whole.train) + len(whole.test) == 17 and whole.test
    assert whole.report.counts["validation"] == 3 and whole.splits["test"] == [row.id for row in whole.test]
    numpy.savez(tmp_path / "turned.npz", **{key: values[::-1] for key, values in arrays().items()})
    turned = prepare_rows(Data(train={"path": "turned.npz"}, validation=3, test="25%"), tmp_path)
    assert {row.id for row in turned.test} == {row.id for row in whole.test}
    other = prepare_rows(Data(train=source, validation=3, test="25%", split_seed=1), tmp_path)
    assert {row.id for row in other.validation} != {row.id for row in whole.validation}


def test_copies_are_dropped_or_told_apart(tmp_path):
    twice = {key: numpy.concatenate([values, values[:5]]) for key, values in arrays().items()}
    numpy.savez(tmp_path / "twice.npz", **twice)
    settings = {"train": {"path": "twice.npz"}, "validation": None, "test": None}
    assert len(prepare_rows(Data(**settings), tmp_path).train) == 20
    kept = prepare_rows(Data(**settings, deduplicate=False), tmp_path).train
    assert len(kept) == len({row.id for row in kept}) == 25
    assert content_hash(kept[0]) == content_hash(kept[20])


def test_test_records_that_were_trained_on_are_reported(tmp_path):
    source = saved(tmp_path)
    prepared = prepare_rows(Data(train=source, validation=None, test={**source, "limit": 4}), tmp_path)
    assert prepared.report.leakage["test"]["exact"] == 4
    assert all(row.id.startswith("test/") for row in prepared.test)


def test_what_cannot_be_used_is_named(tmp_path):
    with pytest.raises(DataError, match=r"same number of records .* label 3"):
        load_rows(saved(tmp_path, label=numpy.arange(3)), tmp_path)
    with pytest.raises(DataError, match="no array `labels`") as caught:
        load_rows({**saved(tmp_path), "columns": {"x": "labels"}}, tmp_path)
    assert "Did you mean `label`" in caught.value.hint
    with pytest.raises(DataError, match="file holds none"):
        load_rows("some.jsonl", tmp_path)
    with pytest.raises(DataError, match="There is no file"):
        load_rows("none.npz", tmp_path)
    with pytest.raises(DataError, match="not finite"):
        wrong = arrays()["latent"]
        wrong[7, 0, 0] = numpy.nan
        prepare_rows(Data(train=saved(tmp_path, latent=wrong), validation=None, test=None), tmp_path)
    (tmp_path / "broken.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="cannot be read"):
        load_rows("broken.npz", tmp_path)


def test_arrays_and_text_do_not_stand_for_each_other(tmp_path):
    with pytest.raises(DataError, match="holds text"):
        load_rows({"kind": "sums"}, tmp_path)
    with pytest.raises(DataError, match="holds arrays"):
        load_records({"kind": "digits"}, tmp_path)


def test_arrays_are_not_joined(tmp_path):
    numpy.savez(tmp_path / "latents.npz", a=numpy.zeros((2, 3)), b=numpy.zeros((2, 3)))
    with pytest.raises(DataError, match="`columns` joins several into latent"):
        load_rows({"path": "latents.npz", "columns": {"latent": ["a", "b"]}}, tmp_path)
