"""A weight delta: added or set, exact to undo, sparse where it can be, and never on another model."""

import pytest
import torch

from luthier.conformance.tiny import tiny_model
from luthier.errors import ModelError, RecipeError
from luthier.models.delta import Change, WeightDelta, compose, tensor_hash

DOWN = "model.layers.0.mlp.down_proj.weight"
NORM = "model.norm.weight"


def change(model, name, values, **more):
    tensor = model.get_parameter(name)
    return Change(values, tensor_hash(tensor), tuple(tensor.shape), **more)


def columns(model, index, fill=1.0):
    """A change of some columns of down_proj [32, 48]."""
    return WeightDelta(
        {DOWN: change(model, DOWN, torch.full((32, len(index)), fill), index=torch.tensor(index), dim=1)}
    )


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_applied_changes_and_restores_the_exact_bits(dtype):
    model = tiny_model(dtype)
    before = bits(model)
    weight = model.get_parameter(DOWN)
    delta = WeightDelta(
        {
            DOWN: change(model, DOWN, torch.randn(3), index=torch.tensor([0, 50, 32 * 48 - 1])),
            NORM: change(model, NORM, torch.full((32,), 7.0), verb="set"),
        }
    )
    with delta.applied(model):
        changed = (weight != before[DOWN]).nonzero()
        assert changed.tolist() == [[0, 0], [1, 2], [31, 47]]
        assert torch.equal(model.get_parameter(NORM), torch.full((32,), 7.0, dtype=dtype))
    assert same(before, bits(model))  # adding and subtracting would miss 2% of bfloat16 entries


def test_restored_after_an_error_too():
    model = tiny_model(torch.bfloat16)
    before = bits(model)
    with pytest.raises(ZeroDivisionError), columns(model, [1]).applied(model):
        raise ZeroDivisionError
    assert same(before, bits(model))


def test_merge_adds_in_fp32_and_rounds_once():
    model = tiny_model(torch.bfloat16)
    weight = model.get_parameter(DOWN).detach().clone()
    values = torch.randn(32, 48)
    WeightDelta({DOWN: change(model, DOWN, values)}).merge_into(model, coefficient=0.5)
    assert torch.equal(model.get_parameter(DOWN), (weight.float() + 0.5 * values).to(torch.bfloat16))


def test_rows_columns_and_positions_are_the_dense_change():
    model = tiny_model(torch.float32)
    rows = change(model, DOWN, torch.randn(2, 48), index=torch.tensor([5, 2]), dim=0)
    assert torch.equal(rows.dense()[5], rows.values[0]) and torch.equal(rows.dense()[2], rows.values[1])
    cols = change(model, DOWN, torch.randn(32, 1), index=torch.tensor([40]), dim=1)
    assert torch.equal(cols.dense()[:, 40], cols.values[:, 0]) and float(cols.dense()[:, :40].abs().sum()) == 0


def test_saved_and_loaded(tmp_path):
    model = tiny_model(torch.float32)
    delta = WeightDelta(
        {
            DOWN: change(model, DOWN, torch.randn(32, 2), index=torch.tensor([3, 7]), dim=1),
            NORM: change(model, NORM, torch.randn(32), verb="set"),
        }
    )
    delta.save(tmp_path / "delta.safetensors")
    again = WeightDelta.load(tmp_path / "delta.safetensors")
    first, second = tiny_model(torch.float32), tiny_model(torch.float32)
    delta.merge_into(first)
    again.merge_into(second)
    assert same(bits(first), bits(second)) and not same(bits(first), bits(model))
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be read"):
        WeightDelta.load(tmp_path / "other.safetensors")


def test_another_model_is_refused():
    delta = columns(tiny_model(torch.float32), [3])
    with pytest.raises(ModelError, match="another"):
        delta.merge_into(tiny_model(torch.float32, seed=1))
    with pytest.raises(ModelError, match="does not have"):
        WeightDelta({"lost": delta.changes[DOWN]}).merge_into(tiny_model())


def test_the_base_is_recognised_in_either_type():
    weight = tiny_model(torch.bfloat16).get_parameter(DOWN)
    assert tensor_hash(weight) == tensor_hash(weight.float()) != tensor_hash(weight.T)


def test_composition_is_arithmetic():
    model = tiny_model(torch.float32)
    left, right = columns(model, [1, 3], 1.0), columns(model, [3, 5], 10.0)
    both = compose([(left, 1.0), (right, 0.5)])
    assert both.changes[DOWN].index.tolist() == [1, 3, 5]
    assert both.changes[DOWN].values[0].tolist() == [1.0, 6.0, 5.0]
    dense = WeightDelta({DOWN: change(model, DOWN, torch.ones(32, 48))})
    mixed = compose([(dense, 2.0), (left, 1.0)]).changes[DOWN]
    assert mixed.index is None and mixed.values[0, :4].tolist() == [2.0, 3.0, 2.0, 3.0]


def test_disjoint_columns_do_not_interfere():
    model = tiny_model(torch.float32)
    left, right = columns(model, [1]), columns(model, [2])
    with compose([(left, 1.0), (right, 1.0)]).applied(model):
        both = model.get_parameter(DOWN).detach().clone()
    with left.applied(model):
        assert torch.equal(model.get_parameter(DOWN)[:, 1], both[:, 1])


def test_sets_are_chosen_and_never_scaled():
    model = tiny_model(torch.float32)
    first, second = (WeightDelta({NORM: change(model, NORM, torch.full((32,), v), verb="set")}) for v in (1.0, 2.0))
    with pytest.raises(RecipeError, match="Choose one"):
        compose([(first, 1.0), (second, 1.0)])
    assert compose([(first, 1.0), (second, 1.0)], {NORM: 1}).changes[NORM] is second.changes[NORM]
    with pytest.raises(RecipeError, match="no meaning"):
        first.merge_into(model, coefficient=0.5)
    with pytest.raises(RecipeError, match="another adds"):
        compose([(first, 1.0), (WeightDelta({NORM: change(model, NORM, torch.ones(32))}), 1.0)])
