import pytest
import torch
from torch import nn

from luthier.conformance.tiny import tiny_model
from luthier.errors import RecipeError
from luthier.tuners._layers import Replacement, layers_of, linear_layers, replace_layer, save_without


def test_layers_are_found_by_their_last_name_in_the_models_order():
    model = tiny_model()
    names = [name for name, _ in linear_layers(model, ["v_proj", "down_proj"], "x", head=False)]
    own = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in ("v_proj", "down_proj")]
    assert names == own and len(names) >= 4


def test_the_output_embedding_is_a_linear_layer_only_where_it_may_be():
    model = tiny_model()
    head = model.get_output_embeddings()
    with_head, without = (dict(linear_layers(model, "all-linear", "x", head=head)) for head in (True, False))
    assert {*with_head.values()} - {*without.values()} == {head}
    assert [*dict(linear_layers(nn.Sequential(nn.Linear(2, 2)), "all-linear", "x", head=False))] == ["0"]


def test_names_of_no_layer_are_refused():
    with pytest.raises(RecipeError, match=r"tuner `x` finds no linear layers called a, b\."):
        linear_layers(tiny_model(), ["a", "b"], "x", head=True)
    with pytest.raises(RecipeError, match=r"tuner `x` finds no linear layers\."):
        linear_layers(nn.Sequential(nn.ReLU()), "all-linear", "x", head=True)


def test_a_replacement_shares_the_weight_and_becomes_an_ordinary_layer_again():
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), nn.Linear(2, 2))
    plain = model[0][0]
    replace_layer(model, "0.0", Replacement(plain))
    assert [name for name, _ in layers_of(model, Replacement)] == ["0.0"]
    assert model[0][0].weight is plain.weight and model[0][0].bias is plain.bias
    again = model[0][0].with_weight(nn.Parameter(torch.ones(2, 3)))
    assert type(again) is nn.Linear and again.bias is plain.bias
    assert torch.equal(again(torch.ones(1, 3)), 3 + plain.bias[None])


def test_tensors_of_the_tuner_stay_out_of_the_saved_model(tmp_path):
    model = tiny_model()
    model.model.layers[0].self_attn.q_proj.delta = nn.Parameter(torch.ones(3))
    save_without(model, tmp_path, lambda name: name.endswith(".delta"))
    again, loading = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert torch.equal(again.model.layers[0].self_attn.q_proj.weight, model.model.layers[0].self_attn.q_proj.weight)
