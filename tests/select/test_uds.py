"""uds: the card's numbers, the sketch's scale, the ring, and what a diverse choice does to copies."""

import math

import pytest
import torch

from luthier import parts
from luthier.conformance.tiny import tiny_model, tiny_rows
from luthier.data.batches import collate
from luthier.errors import RunError
from luthier.models.kernels import head as heads
from luthier.models.policy import TokenPolicy
from luthier.select import _logits
from luthier.select._sketch import Projection, Ring, nuclear_norm
from luthier.select.base import Pool, keyed_uniform

UDS = parts.build("selector", "uds")
OFF = parts.build("selector", {"kind": "uds", "diversity_weight": 0.0})


def norm(matrix):
    wide = torch.as_tensor(matrix, dtype=torch.float64)
    return float(nuclear_norm(wide @ wide.T))


@pytest.mark.parametrize(
    ("matrix", "wanted"),
    [
        ([[3.0, 0.0], [0.0, 4.0]], 7.0),
        ([[3.0, 4.0], [0.0, 0.0]], 5.0),
        ([[1.0, 2.0, 2.0]] * 4, 6.0),
        ((3 * torch.eye(4)).tolist(), 12.0),
        ([[1.0, 2.0, 0.0], [0.0, 1.0, 2.0]], 4.37780),
        ([[6.0, 7.0, 5.0], [5.0, 6.0, 7.0]], 16.463),
        ([[10.0, 0.0], [0.0, 0.0]], 10.0),
        ([[1.0, 0.0], [0.0, 1.0]], 2.0),
    ],
)
def test_nuclear_norms_of_the_card(matrix, wanted):
    assert abs(norm(matrix) - wanted) < 5e-4


def test_the_gram_matrix_gives_the_singular_values_also_at_low_rank():
    draw = torch.Generator().manual_seed(0)
    full = torch.randn(32, 256, generator=draw)
    low = torch.randn(128, 8, generator=draw) @ torch.randn(8, 4000, generator=draw)
    for matrix in (full, low):
        wanted = float(torch.linalg.svdvals(matrix.double()).sum())
        assert abs(norm(matrix) / wanted - 1) < 1e-5
    narrow = low @ low.T  # what float32 would give: the noise of 120 null directions
    eigenvalues = torch.linalg.eigvalsh(narrow).clamp(min=0)
    assert abs(float(eigenvalues.sqrt().sum()) / norm(low) - 1) > 1e-4


def features_of(selector, rows, model, **collated):
    policy = TokenPolicy(model)
    with torch.no_grad():
        return selector.features(policy, collate(rows, **collated), selector.start(policy))


def logits_of(row, model):
    ids = torch.from_numpy(row.ids).long()[None]
    with torch.no_grad():
        return model(input_ids=ids).logits[0, :-1]


@pytest.mark.parametrize("way", ["through the weight", "pieces of the vocabulary", "one piece"])
def test_norms_and_sketches_of_a_micro_batch_are_those_of_each_record_alone(monkeypatch, way):
    monkeypatch.setattr(_logits, "PIECE", 7)
    if way != "through the weight":
        monkeypatch.setattr(heads.Head, "linear", None)
        size = 2**12 if way == "pieces of the vocabulary" else 2**30
        monkeypatch.setitem(heads.CHUNK_BYTES, "cpu", size)
    rows, model = tiny_rows(5), tiny_model()
    state = UDS.start(TokenPolicy(model))
    found = features_of(UDS, rows, model)
    for index, row in enumerate(rows):
        logits = logits_of(row, model)
        assert abs(float(found["norm"][index]) / float(torch.linalg.svdvals(logits).sum()) - 1) < 1e-9
        across = state.across.columns(torch.arange(61))
        along = state.along.columns(torch.arange(len(logits)))
        wanted = (along @ logits @ across.T).flatten()
        assert torch.allclose(found["sketch"][index].double(), wanted, rtol=1e-5, atol=1e-6)


def test_products_with_the_output_embedding_follow_its_training():
    """Scores after the weights moved in place are those of new products."""
    rows, model = tiny_rows(3), tiny_model()
    policy, batch = TokenPolicy(model), collate(rows)
    state = UDS.start(policy)
    with torch.no_grad():
        before = UDS.features(policy, batch, state)["norm"]
        model.lm_head.weight.mul_(2.0)
        after = UDS.features(policy, batch, state)["norm"]
        fresh = UDS.features(policy, batch, UDS.start(policy))["norm"]
    assert torch.equal(after, fresh) and not torch.allclose(after, before, rtol=0.1)


def test_a_bias_and_a_scale_of_the_head_are_in_the_logits(monkeypatch):
    rows, model = tiny_rows(3), tiny_model()
    model.config.logit_scale = 0.5
    draw = torch.randn(61, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model.lm_head.bias = torch.nn.Parameter(draw, requires_grad=False)
    one = features_of(UDS, rows, model)
    monkeypatch.setattr(heads.Head, "linear", None)
    other = features_of(UDS, rows, model)
    assert torch.allclose(one["norm"], other["norm"], rtol=1e-9)
    assert torch.allclose(one["sketch"], other["sketch"], rtol=1e-4, atol=1e-6)
    plain = features_of(UDS, rows[:1], tiny_model())["norm"]
    assert not torch.allclose(one["norm"][:1], plain, rtol=0.01)


def test_targets_alone_and_centred_logits():
    rows, model = tiny_rows(3), tiny_model()
    targets = features_of(parts.build("selector", {"kind": "uds", "positions": "targets"}), rows, model)["norm"]
    centred = features_of(parts.build("selector", {"kind": "uds", "center_logits": True}), rows, model)
    for index, row in enumerate(rows):
        logits, weights = logits_of(row, model), torch.from_numpy(row.streams["weights"].values[1:])
        assert abs(float(targets[index]) - float(torch.linalg.svdvals(logits[weights != 0]).sum())) < 1e-9
        flat = logits - logits.mean(1, keepdim=True)
        assert abs(float(centred["norm"][index]) - float(torch.linalg.svdvals(flat).sum())) < 1e-6
    shifted = tiny_model()
    shifted.lm_head.bias = torch.nn.Parameter(torch.full((61,), 5.0, dtype=torch.float64), requires_grad=False)
    moved = features_of(parts.build("selector", {"kind": "uds", "center_logits": True}), rows, shifted)
    assert torch.allclose(moved["norm"], centred["norm"], atol=1e-6)
    assert torch.allclose(moved["sketch"], centred["sketch"], atol=1e-5)
    assert not torch.allclose(features_of(UDS, rows, shifted)["norm"], features_of(UDS, rows, model)["norm"], rtol=0.05)


def energy(size, length, scale, draws):
    """Mean of ‖z‖² / ‖L‖² over draws of L and of the projections."""
    ratios, draw = [], torch.Generator().manual_seed(1)
    for seed in range(draws):
        logits = torch.randn(length, size, generator=draw, dtype=torch.float64)
        across, along = Projection(size, 128, scale, seed), Projection(length, 8, scale, seed + 10_000)
        z = along.columns(torch.arange(length)) @ logits @ across.columns(torch.arange(size)).T
        ratios.append(float(z.pow(2).sum() / logits.pow(2).sum()))
    return torch.tensor(ratios)


def test_the_default_sketch_keeps_energy():
    ratios = energy(1000, 64, "isometric", 400)
    assert abs(float(ratios.mean()) - 1) < 0.02
    assert 0.03 < float(ratios.std()) < 0.07


@pytest.mark.parametrize(("length", "size", "wanted"), [(16, 64, 0.290), (32, 256, 0.268), (64, 1000, 0.258)])
def test_the_published_sketch_inflates_energy(length, size, wanted):
    ratios = energy(size, length, "fft_unnormalised", 300) / (length * size)
    assert abs(float(ratios.mean()) - wanted) < 0.02
    assert abs((1 + 2 / length) * (1 + 2 / size) / 4 - wanted) < 1e-3


def test_all_coordinates_of_the_default_transform_are_an_isometry():
    whole = Projection(61, 61, "isometric").columns(torch.arange(61))
    assert torch.allclose(whole @ whole.T, torch.eye(61, dtype=torch.float64), atol=1e-12)
    assert Projection(61, 500, "isometric").kept == 61
    assert Projection(61, 500, "fft_unnormalised").kept == 500
    assert math.isclose(6.6, 1.5e-3 * math.sqrt(512 * 152_000) / 2, rel_tol=0.01)


def test_a_ring_holds_the_last_ones():
    ring = Ring(4, 1)
    ring.push(torch.tensor([[1.0], [2.0], [3.0]]))
    ring.push(torch.tensor([[4.0], [5.0], [6.0]]))
    assert sorted(ring.held().flatten().tolist()) == [3.0, 4.0, 5.0, 6.0]


def test_the_distance_to_nothing_and_to_oneself_is_zero():
    ring, sketch = Ring(8, 16), torch.randn(1, 16, generator=torch.Generator().manual_seed(0)) * 1e3
    assert ring.mean_distance(sketch).tolist() == [0.0]
    ring.push(sketch.repeat(3, 1))
    assert ring.mean_distance(sketch).tolist() == [0.0]
    assert abs(float(ring.mean_distance(sketch + 1)) - 4.0) < 1e-4


def pool_of(norms, sketches, state, update=1):
    names = tuple(f"r{index}" for index in range(len(norms)))
    return Pool(names, {"norm": norms, "sketch": sketches}, keyed_uniform(0, update, names), state)


def test_without_diversity_the_ranking_is_that_of_the_norm():
    rows, model = tiny_rows(6), tiny_model()
    found, state = features_of(OFF, rows, model), OFF.start(TokenPolicy(model))
    state.ring.push(torch.randn(5, found["sketch"].shape[1], generator=torch.Generator().manual_seed(0)))
    scores = OFF.scores(pool_of(found["norm"], found["sketch"], state))
    assert torch.equal(scores, found["norm"])


def test_only_what_was_kept_is_remembered():
    rows, model = tiny_rows(6), tiny_model()
    found, state = features_of(UDS, rows, model), UDS.start(TokenPolicy(model))
    pool = pool_of(found["norm"], found["sketch"], state)
    first = UDS.scores(pool)
    assert torch.equal(first, found["norm"])  # an empty ring: the norm alone
    UDS.commit(pool.only([1, 4]))
    assert int(state.ring.pushed) == 2
    wanted = (found["sketch"] - found["sketch"][1]).norm(dim=1) + (found["sketch"] - found["sketch"][4]).norm(dim=1)
    assert torch.allclose(UDS.scores(pool), found["norm"] + 6.6 * wanted / 2, rtol=1e-5)


def test_a_record_longer_than_the_sketch_is_named():
    short = parts.build("selector", {"kind": "uds", "length": 4})
    with pytest.raises(RunError, match=r"Record record-\d has \d+ positions; the sketch covers 4"):
        features_of(short, tiny_rows(3), tiny_model())


def copies_kept(weight, seed):
    """Share of copies of one template among what is kept in the second half of a stream that has half of them."""
    draw = torch.Generator().manual_seed(seed)
    selector = parts.build("selector", {"kind": "uds", "keep": 0.25, "buffer_size": 256, "diversity_weight": weight})
    ring = Ring(256, 64)
    template = torch.randn(64, generator=draw) / 8
    state = type("State", (), {"ring": ring})
    kept = []
    for update in range(200):
        copy = torch.rand(8, generator=draw) < 0.5
        fresh = torch.randn(8, 64, generator=draw) / 8
        norms = 1 + 0.1 * torch.randn(8, generator=draw)
        sketches = norms[:, None] * torch.where(copy[:, None], template, fresh)
        pool = pool_of(norms, sketches, state)
        chosen = selector.chosen(selector.scores(pool))
        selector.commit(pool.only(chosen))
        kept += copy[chosen].tolist() if update >= 100 else []
    return sum(kept) / len(kept)


def test_diversity_keeps_copies_of_one_template_out():
    alone = sum(copies_kept(0.0, seed) for seed in range(3)) / 3
    diverse = sum(copies_kept(10.0, seed) for seed in range(3)) / 3
    assert 0.4 < alone < 0.6 and diverse < 0.3, (alone, diverse)
