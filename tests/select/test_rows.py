"""Selectors by lot and by loss: who is kept, checked against values computed apart from them."""

import pytest
import torch

from luthier import parts
from luthier.conformance.selector import kept_records
from luthier.conformance.tiny import tiny_model, tiny_rows
from luthier.data.batches import collate
from luthier.engine.trainer import Batching
from luthier.models.policy import TokenPolicy
from luthier.recipe import load_recipe
from luthier.select.base import Pool, keyed_uniform
from luthier.select.rows.max_loss import drawn_by_rank


def losses(rows, model):
    """Mean loss of each row by one plain forward over it alone."""
    found = {}
    for row in rows:
        ids = torch.from_numpy(row.ids).long()[None]
        logp = model(input_ids=ids).logits[0].log_softmax(-1)
        at = [t for t in range(1, len(row)) if row.streams["weights"].values[t] != 0]
        found[row.id] = -sum(float(logp[t - 1, ids[0, t]].detach()) for t in at) / max(1, len(at))
    return found


def pool_of(names, update=1, **features):
    return Pool(tuple(names), features, keyed_uniform(0, update, names))


def test_random_keeps_every_record_equally_often():
    selector = parts.build("selector", {"kind": "random", "keep": 0.25})
    names = [f"record-{index}" for index in range(8)]
    kept = torch.zeros(8)
    for update in range(2000):
        kept[selector.chosen(selector.scores(pool_of(names, update)))] += 1
    assert kept.sum() == 4000
    assert (kept / 2000 - 0.25).abs().max() < 0.04


def test_max_loss_looks_at_the_mean_over_the_targets_of_each_record():
    rows, model = tiny_rows(6), tiny_model()
    selector = parts.build("selector", "max_loss")
    with torch.no_grad():
        found = selector.features(TokenPolicy(model), collate(rows), None)["loss"]
    wanted = losses(rows, model)
    assert all(abs(float(value) - wanted[row.id]) < 1e-12 for row, value in zip(rows, found, strict=True))
    pool = pool_of([row.id for row in rows], loss=found)
    top = sorted(wanted, key=lambda name: -wanted[name])[:3]
    assert {pool.names[i] for i in selector.chosen(selector.scores(pool))} == set(top)


def test_a_record_without_a_target_has_no_loss():
    with torch.no_grad():
        batch = collate(tiny_rows(2, targets=False))
        found = parts.build("selector", "max_loss").features(TokenPolicy(tiny_model()), batch, None)
    assert found["loss"].tolist() == [0.0, 0.0]


def test_pressure_draws_by_rank_with_the_chances_it_names():
    values, pressure = torch.tensor([5.0, 1.0, 9.0, 3.0]), 8.0
    first = torch.zeros(4)
    for update in range(4000):
        keys = drawn_by_rank(values, keyed_uniform(0, update, ["a", "b", "c", "d"]), pressure)
        first[int(keys.argmax())] += 1
    rank = torch.tensor([1.0, 3.0, 0.0, 2.0])
    chance = pressure ** (-rank / 4)
    assert (first / 4000 - chance / chance.sum()).abs().max() < 0.03


@pytest.mark.parametrize("name", ["random", "max_loss"])
def test_a_pool_is_cut_from_the_data_order(name):
    """Ten candidates in pools of 8 and 2: half of each, whatever the micro-batches."""
    found = kept_records(parts.build("selector", name), Batching(10, 10_000))
    assert [len(update) for update in found] == [5, 5, 5, 5]


@pytest.mark.parametrize("name", ["random", "max_loss"])
def test_the_method_selects_and_can_be_tuned(name):
    recipe = load_recipe(
        {"model": "nano", "data": {"train": "strings"}}, methods=[name], overrides=["train.select.keep=0.25"]
    )
    assert recipe.settings.train.select["kind"] == name
    assert recipe.build_parts()["train.select"].keep == 0.25
    assert recipe.origins["train.select.kind"] == f"method {name}"


def test_no_selector_is_the_default():
    recipe = load_recipe({"model": "nano", "data": {"train": "strings"}})
    assert recipe.settings.train.select is None and "train.select" not in recipe.build_parts()
