import json
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from types import SimpleNamespace

import numpy
import pytest

from luthier.data.cache import read_cache
from luthier.data.identity import content_hash
from luthier.data.pairs import without_rejected
from luthier.data.prepare import prepare
from luthier.data.render import Renderer
from luthier.errors import DataError, RecipeError


def row(index, answer="Tom has 7 apples."):
    return {"prompt": f"question {index} about {index * 7919 % 1009} things", "completion": f"{answer} {index}"}


@pytest.fixture
def setting(tmp_path):
    def make(rows=(), name="data.jsonl", **changes):
        (tmp_path / name).write_text("".join(json.dumps(row_fields) + "\n" for row_fields in rows))
        defaults = {"train": name, "validation": "10%", "test": "15%", "split_seed": 0, "max_tokens": 200}
        return SimpleNamespace(**(defaults | {"too_long": "drop", "deduplicate": True, "group_by": None} | changes))

    return make


@pytest.fixture
def renderer(make_tokenizer):
    return Renderer(make_tokenizer("chatml"))


def test_rows_records_and_splits_belong_together(setting, renderer, tmp_path):
    prepared = prepare(setting([row(index) for index in range(100)]), renderer, tmp_path)
    assert sorted(prepared.records) == sorted(chain(*prepared.splits.values())) and len(prepared.records) == 100
    for name in ("train", "validation", "test"):
        rows = getattr(prepared, name)
        assert [rendered.id for rendered in rows] == prepared.splits[name]
        assert len(rows) == prepared.report.counts[name] > 0
    rendered = prepared.train[0]
    assert renderer.reference(prepared.records[rendered.id]) in renderer.tokenizer.decode(rendered.ids.tolist())
    report = prepared.report
    assert report.target_tokens == sum(rendered.targets for rendered in prepared.train) and 0 < report.target_share < 1
    assert report.lengths["max"] == max(map(len, [*prepared.train, *prepared.validation, *prepared.test]))
    assert json.loads(json.dumps(report.to_json()))["read"] == 100


def test_too_long_is_dropped_truncated_or_an_error(setting, renderer, tmp_path):
    rows = [*(row(index) for index in range(40)), row(40, answer="Yes. " * 200)]
    limit = {"validation": None, "test": None, "max_tokens": 180}
    dropped = prepare(setting(rows, **limit), renderer, tmp_path)
    assert len(dropped.train) == 40 and dropped.report.dropped == {"train": 1}
    assert "max_tokens 180 drops 1 of 41" in dropped.report.warnings[0]
    cut = prepare(setting(rows, **limit, too_long="truncate"), renderer, tmp_path)
    assert len(cut.train) == 41 and cut.report.truncated == {"train": 1}
    assert max(len(rendered) for rendered in cut.train) == 180
    assert all(len(rendered.streams["weights"].values) == len(rendered) for rendered in cut.train)
    with pytest.raises(DataError, match=r"data\.jsonl:41: record \w+ has \d+ tokens, more than data\.max_tokens 180"):
        prepare(setting(rows, **limit, too_long="error"), renderer, tmp_path)


def test_rows_without_a_target_left_are_dropped_and_counted(setting, renderer, tmp_path):
    rows = [row(index) for index in range(30)] + [{"prompt": "Hello, how are you? " * 60, "completion": "Yes."}]
    done = prepare(setting(rows, validation=None, test=None, too_long="truncate"), renderer, tmp_path)
    assert len(done.train) == 30 and done.report.no_target == 1
    assert any("lost their whole answer" in warning for warning in done.report.warnings)


def test_nothing_left_and_everything_masked_are_refused(setting, renderer, tmp_path):
    rows = [row(index) for index in range(10)]
    for policy in ("drop", "truncate"):
        with pytest.raises(DataError, match="No training record is left"):
            prepare(setting(rows, max_tokens=5, too_long=policy), renderer, tmp_path)
    talk = [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Hello"}]
    blind = Renderer(renderer.tokenizer)
    blind._tokenised = lambda record, rendered: _masked(Renderer._tokenised(blind, record, rendered))
    with pytest.raises(DataError, match="Everything is masked"):
        prepare(setting([{"messages": talk}], validation=None, test=None), blind, tmp_path)


def _masked(rendering):
    rendering.row.streams["weights"].values[:] = 0
    return rendering


def test_sources_of_their_own_keep_ids_apart_and_leaks_are_counted(setting, renderer, tmp_path):
    rows = [row(index) | {"id": index} for index in range(60)]
    setting([*rows[:3], row(500) | {"id": 99}], name="test.jsonl")
    done = prepare(setting(rows, test="test.jsonl"), renderer, tmp_path)
    assert done.splits["test"] == ["test/0", "test/1", "test/2", "99"]
    assert len(set(done.records)) == len(done.records)
    kept = {name for name in done.splits["train"] if name in ("0", "1", "2")}
    leak = done.report.leakage["test"]
    assert leak["exact"] == len(kept) > 0 and leak["examples"]
    assert any("also in train" in warning for warning in done.report.warnings)


def test_duplicates_are_counted_whether_removed_or_not(setting, renderer, tmp_path):
    rows = [row(index) for index in range(20)] * 2
    assert prepare(setting(rows), renderer, tmp_path).report.duplicates == 20
    kept = prepare(setting(rows, deduplicate=False), renderer, tmp_path)
    assert kept.report.duplicates == 20 and len(kept.records) == 40


def test_the_cache_gives_the_same_rows_and_is_never_stale(setting, renderer, tmp_path, monkeypatch):
    rows, cache = [row(index) for index in range(50)], tmp_path / "cache"
    first = prepare(setting(rows), renderer, tmp_path, cache)
    (stored,) = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(Renderer, "explain", lambda *_: pytest.fail("rendered again"))
        second = prepare(setting(rows, max_tokens=150), renderer, tmp_path, cache)
    for row_before, row_after in zip(first.train, second.train, strict=True):
        assert row_before.id == row_after.id and numpy.array_equal(row_before.ids, row_after.ids)
        assert row_before.ids.dtype == row_after.ids.dtype
        assert numpy.array_equal(row_before.streams["weights"].values, row_after.streams["weights"].values)
    assert second.report.notes == first.report.notes
    prepare(setting([*rows[1:], row(0, answer="No.")]), renderer, tmp_path, cache)
    prepare(setting(rows), Renderer(renderer.tokenizer, targets="all"), tmp_path, cache)
    assert len(list(cache.iterdir())) == 3
    stored.write_bytes(stored.read_bytes()[:100])
    assert numpy.array_equal(prepare(setting(rows), renderer, tmp_path, cache).train[0].ids, first.train[0].ids)


def test_many_may_write_the_cache_at_once(setting, renderer, tmp_path):
    settings, cache = setting([row(index) for index in range(20)]), tmp_path / "cache"
    with ThreadPoolExecutor(4) as pool:
        every = list(pool.map(lambda _: prepare(settings, renderer, tmp_path, cache), range(4)))
    assert len({prepared.report.tokens for prepared in every}) == 1
    assert [path.suffix for path in cache.iterdir()] == [".npz"]
    everything = [*every[0].records.values()]
    assert read_cache(cache, renderer, [content_hash(prepared) for prepared in everything[:-1]]) is None


def test_a_template_with_the_date_is_cached_for_a_day(make_tokenizer, setting, tmp_path, monkeypatch):
    import datetime

    from luthier.data import cache as module

    template = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    renderer, cache = Renderer(make_tokenizer(template)), tmp_path / "cache"
    settings = setting([row(index) for index in range(10)])
    prepare(settings, renderer, tmp_path, cache)

    class Tomorrow(datetime.date):
        @classmethod
        def today(cls):
            return datetime.date(2100, 1, 1)

    monkeypatch.setattr(module, "date", Tomorrow)
    prepare(settings, renderer, tmp_path, cache)
    assert len(list(cache.iterdir())) == 2


def test_errors_name_file_line_and_record(setting, make_tokenizer, tmp_path):
    talk = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}, {"role": "assistant", "content": "z"}]
    with pytest.raises(DataError, match=r"data\.jsonl:3: record \w+: .*System role not supported"):
        prepare(setting([row(0), row(1), {"messages": talk}]), Renderer(make_tokenizer("gemma")), tmp_path)


def test_an_unknown_policy_is_refused(setting, renderer, tmp_path):
    with pytest.raises(RecipeError, match=r"data\.too_long is `cut`"):
        prepare(setting([row(0)], too_long="cut"), renderer, tmp_path)


def pair(index, chosen="Yes.", rejected="No, no, no."):
    return {"prompt": f"question {index} about {index * 7919 % 1009} things", "chosen": chosen, "rejected": rejected}


def test_pairs_are_one_record_of_two_rows(setting, renderer, tmp_path):
    rows = [pair(index) for index in range(40)]
    first = prepare(setting(rows, validation=8, test=None), renderer, tmp_path, tmp_path / "cache")
    assert first.report.counts == {"train": 32, "validation": 8, "test": 0}
    assert first.report.shapes == {"preference": 40}
    assert len(first.train) == 64 and len(first.splits["train"]) == 32
    assert {row.record for row in first.train} == set(first.splits["train"]) <= set(first.records)
    assert len(first.report.previews) == 2 and first.report.previews[0] != first.report.previews[1]
    again = prepare(setting(rows, validation=8, test=None), renderer, tmp_path, tmp_path / "cache")
    for row_before, row_after in zip(first.train, again.train, strict=True):
        assert (row_before.id, row_before.record) == (row_after.id, row_after.record)
        assert numpy.array_equal(row_before.ids, row_after.ids)
        assert row_before.streams["preferred"].values == row_after.streams["preferred"].values


def test_a_pair_is_dropped_or_cut_as_a_whole(setting, renderer, tmp_path):
    rows = [*(pair(index) for index in range(30)), pair(30, rejected="No. " * 200)]
    limit = {"validation": None, "test": None, "max_tokens": 180}
    dropped = prepare(setting(rows, **limit), renderer, tmp_path)
    assert len(dropped.train) == 60 and dropped.report.dropped == {"train": 1}
    cut = prepare(setting(rows, **limit, too_long="truncate"), renderer, tmp_path)
    assert len(cut.train) == 62 and cut.report.truncated == {"train": 1}
    assert max(len(row) for row in cut.train) == 180 and all(row.targets for row in cut.train)
    lost = [*rows[:30], {"prompt": "Hello, how are you? " * 60, "chosen": "Yes.", "rejected": "No."}]
    done = prepare(setting(lost, **limit, too_long="truncate"), renderer, tmp_path)
    assert len(done.train) == 60 and done.report.no_target == 1


def test_pairs_without_a_difference_are_dropped_and_counted(setting, renderer, tmp_path):
    rows = [*(pair(index) for index in range(30)), pair(30, rejected="Yes.")]
    done = prepare(setting(rows, validation=None, test=None), renderer, tmp_path)
    assert len(done.train) == 60 and done.report.equal_pairs == 1 and done.report.counts["train"] == 30
    assert any("1 pairs have a chosen and a rejected answer that are the same" in w for w in done.report.warnings)
    with pytest.raises(DataError, match="1 are pairs of equal answers"):
        prepare(setting(rows[30:], validation=None, test=None), renderer, tmp_path)


def labelled(index, label):
    return {**row(index), "label": label}


def test_labels_travel_with_the_rows(setting, renderer, tmp_path):
    rows = [*(labelled(index, index % 3 == 0) for index in range(30)), row(30), labelled(31, "spam"), labelled(32, 1)]
    first, again = (
        prepare(setting(rows, validation=None, test=None), renderer, tmp_path, tmp_path / "cache") for _ in range(2)
    )
    for prepared in (first, again):
        labels = {
            prepared.records[rendered.id].origin: rendered.streams.get("preferred") for rendered in prepared.train
        }
        values = {origin.rsplit(":")[1]: None if label is None else label.values for origin, label in labels.items()}
        assert values == {str(i + 1): i % 3 == 0 for i in range(30)} | dict.fromkeys(("31", "32", "33"))
        assert prepared.report.labelled_bad == 20
        assert any("20 of 33 training records have `label: false`" in words for words in prepared.report.warnings)
    assert len(without_rejected(first.train)) == 13 and all(rendered.record == rendered.id for rendered in first.train)


@pytest.mark.parametrize("bad, count", [("Bad", 10), (0, 10), ("0", 10), ("spam", 0), (2, 0), (True, 0), (False, 0)])
def test_labels_that_only_seem_to_say_bad_are_told(bad, count, setting, renderer, tmp_path):
    rows = [labelled(index, bad if index % 3 == 0 else "good") for index in range(30)]
    done = prepare(setting(rows, validation=None, test=None), renderer, tmp_path)
    assert done.report.seem_bad == count
    assert [words[:2] for words in done.report.warnings if "reads as bad" in words] == (["10"] if count else [])


def test_the_same_answer_with_another_label_is_another_record(setting, renderer, tmp_path):
    rows = [labelled(0, True), labelled(0, False), labelled(0, False)]
    prepared = prepare(setting(rows, validation=None, test=None), renderer, tmp_path)
    assert sorted(float(rendered.streams["preferred"].values) for rendered in prepared.train) == [0, 1]
