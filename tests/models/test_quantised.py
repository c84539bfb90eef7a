"""Quantised layers: tuners that change weights refuse them, and the gradient under an adapter is tried."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from luthier import parts
from luthier.errors import ModelError, RecipeError
from luthier.models.quantised import correct_gradients, has_true_gradient
from luthier.models.weights import is_quantised
from support.families import family


class Wrong(torch.autograd.Function):
    """A product whose backward forgets half of the weight."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, *grads):
        (weight,) = ctx.saved_tensors
        return grads[0] @ weight.roll(1, 0), None


class Int8Linear(nn.Linear):
    """Weights in int8 with a scale per row; a forward in eval mode packs them for good, and packed ones go wrong."""

    def __init__(self, linear, packs=True, switch=True):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.scale, self.packs, self.packed = scale, packs, False
        if switch:
            self.support_avx512bf16_for_cpu = True

    def forward(self, input):
        weight = self.weight.to(input.dtype) * self.scale
        if self.packs and getattr(self, "support_avx512bf16_for_cpu", True) and not (self.training or self.packed):
            self.packed = True
        return Wrong.apply(input, weight) if self.packed else functional.linear(input, weight)


def model_of(**options):
    model = family("llama", tie_word_embeddings=False)
    for layer in model.model.layers:
        for name in ("up_proj", "down_proj"):
            setattr(layer.mlp, name, Int8Linear(getattr(layer.mlp, name), **options))
    return model


def test_a_gradient_is_compared_with_what_the_layer_computes():
    plain = nn.Linear(24, 16)
    assert has_true_gradient(plain)
    layer = Int8Linear(plain)
    assert not has_true_gradient(layer) and not layer.packed  # tried on a copy
    layer.support_avx512bf16_for_cpu = False
    assert has_true_gradient(layer)
    assert has_true_gradient(Int8Linear(plain, packs=False))


def test_the_form_without_a_gradient_is_switched_off_and_named():
    model = model_of()
    notes = parts.build("tuner", "lora").ready(model)
    assert notes == ["Int8Linear.support_avx512bf16_for_cpu is off: in that form the layer's gradient is wrong."]
    layers = [layer for layer in model.modules() if isinstance(layer, Int8Linear)]
    assert len(layers) == 4 and not any(layer.support_avx512bf16_for_cpu for layer in layers)
    assert not any(layer.packed for layer in layers) and correct_gradients(model) == []


def test_a_gradient_that_is_wrong_in_every_form_is_refused():
    with pytest.raises(ModelError, match=r"up_proj \(Int8Linear\) is not that of what the layer computes"):
        parts.build("tuner", "lora").ready(model_of(switch=False))


@pytest.mark.parametrize("tuner", ["full", "s2ft", "spiel", "loramoe"])
def test_tuners_that_change_weights_refuse_quantised_ones(tuner):
    with pytest.raises(RecipeError, match=f"tuner `{tuner}` changes weights, and 4 weights"):
        parts.build("tuner", tuner).ready(model_of())
    assert parts.build("tuner", tuner).ready(family("llama")) == []


def test_what_counts_as_quantised():
    class Packed(torch.Tensor):
        pass

    real = torch.zeros(2, 2)
    assert is_quantised(real.to(torch.int8)) and is_quantised(real.as_subclass(Packed))
    assert not is_quantised(nn.Parameter(real)) and not is_quantised(real.bfloat16())


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes(bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    family("llama", hidden_size=128, intermediate_size=128, head_dim=32).save_pretrained(tmp_path)
    options = {f"load_in_{bits}bit": True}
    model = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**options))
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = True
    parts.build("tuner", "lora").ready(model)
    assert all(has_true_gradient(layer) for layer in model.modules() if type(layer).__name__.startswith("Linear4"))
    with pytest.raises(RecipeError, match="quantised"):
        parts.build("tuner", "full").ready(model)
