"""Which layers a tuner may change: tried on families whose layers are no plain products of a weight of their own."""

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from luthier import parts
from luthier.engine.assemble import apply_tuners
from luthier.errors import ModelError, RecipeError
from luthier.models import adapters
from luthier.models.weights import Owners
from luthier.tuners.base import TunerInputs
from support.families import apart, family, logits, moved

HALF = {"down_proj": 0.3, "o_proj": 0.5}
TUNERS = {
    "lora": {"kind": "lora"},
    "spiel": {"kind": "spiel", "density": 0.2},
    "s2ft": {"kind": "s2ft", "targets": HALF},
    "loramoe": {"kind": "loramoe"},
    "full": {"kind": "full"},
}


OPTIONS = {
    "deepseek_v3": {"qk_head_dim": None, "num_key_value_heads": 4, "head_dim": 4},
    "falcon": {"head_dim": None},
}


def tuned(model, **spec):
    tuner = parts.build("tuner", spec)
    tuner.ready(model)
    return tuner, apply_tuners(model, [tuner], TunerInputs(0, ()))


def saved_apart(tuner, module, masters, folder, base):
    """How far the saved model in plain transformers and PEFT, and merged, is from the module in memory."""
    trained = logits(module)
    tuner.save(module, masters, folder)
    if tuner.kind != "lora":
        return [apart(AutoModelForCausalLM.from_pretrained(folder), trained)]
    with adapters.peft_in_words():  # plain PEFT warns of tied weights
        loaded = peft.PeftModel.from_pretrained(base(), str(folder)).eval()
    differences = [apart(loaded, trained)]
    whole = adapters.merged(loaded)
    whole.save_pretrained(folder / "merged")
    return [
        *differences,
        apart(whole, trained),
        apart(AutoModelForCausalLM.from_pretrained(folder / "merged"), trained),
    ]


RIGHT = [
    ("zamba", "lora"), ("zamba", "spiel"), ("zamba", "full"), ("llama4_text", "lora"), ("llama4_text", "spiel"),
    ("phimoe", "lora"), ("phimoe", "spiel"), ("mamba", "lora"), ("mamba", "spiel"), ("laguna", "lora"),
    ("laguna", "s2ft"), ("deepseek_v3", "s2ft"), ("gpt2", "lora"), ("falcon", "spiel"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "tuner"), RIGHT)
def test_what_is_trained_is_what_is_saved(kind, tuner, tmp_path):
    options = OPTIONS.get(kind, {})
    base = family(kind, **options)
    before = logits(base)
    part, module = tuned(base, **TUNERS[tuner])
    assert apart(module, before) < 1e-5  # nothing is learned yet
    masters = moved(part, module)
    assert apart(module, before) > 0.02
    if part.DISABLING_RESTORES_BASE:
        with part.disabled(module):
            assert apart(module, before) < 1e-5
    assert max(saved_apart(part, module, masters, tmp_path, lambda: family(kind, **options))) < 1e-3


@pytest.mark.parametrize(
    ("kind", "tuner", "first"),
    [
        ("zamba", "lora", "its weight belongs to 2 layers"),
        ("zamba", "spiel", "its weight belongs to 2 layers"),
        ("llama4_text", "lora", "Llama4Router"),
        ("phimoe", "spiel", "PhimoeTopKRouter"),
        ("mamba", "lora", "PEFT does not allow"),
        ("mamba", "spiel", "without calling the layer"),
        ("laguna", "lora", "saved folder"),
    ],
)
def test_layers_that_are_left_out_are_named_with_the_reason(kind, tuner, first):
    part, module = tuned(family(kind), **TUNERS[tuner])
    assert any(first in reason for reason in part.left_out(module).values())
    reached = {id(weight) for weight, _ in part.reached(module)}
    names = dict(module.get_base_model().named_modules() if tuner == "lora" else module.named_modules())
    assert all(id(names[name].weight) not in reached for name in part.left_out(module))


def test_a_layer_that_is_asked_for_by_name_is_refused_and_not_left_out():
    with pytest.raises(RecipeError, match=r"router.*Llama4Router"):
        tuned(family("llama4_text"), kind="lora", targets=["router"])
    with pytest.raises(RecipeError, match="belongs to 2 layers"):
        tuned(family("zamba"), kind="spiel", targets=["down_proj"])
    with pytest.raises(RecipeError, match="belongs to 2 layers"):
        tuned(family("zamba"), **TUNERS["s2ft"])
    with pytest.raises(RecipeError, match=r"dt_proj.*without calling"):
        tuned(family("mamba"), kind="lora", targets=["dt_proj"])


def test_experts_beside_a_shared_weight_leave_it_alone():
    model = family("zamba")
    before = logits(model)
    part, module = tuned(model, **TUNERS["loramoe"])
    moved(part, module)
    assert apart(module, before) > 1e-3
    with part.disabled(module):
        assert apart(module, before) == 0


class Rounded(nn.Linear):
    """Rounds its weight to signs before the product, as BitNet's layers do."""

    def forward(self, input):
        return nn.functional.linear(input, self.weight.sign() * self.weight.abs().mean(), self.bias)


def with_layers(make):
    """A Llama whose feed-forward layers are of another class."""
    model = family("llama", tie_word_embeddings=False)
    for layer in model.model.layers:
        for name, child in list(layer.mlp.named_children()):
            if isinstance(child, nn.Linear):
                other = make(child)
                other.weight = child.weight
                setattr(layer.mlp, name, other)
    return model


def rounded(child):
    return Rounded(child.in_features, child.out_features, bias=False)


@pytest.mark.parametrize("tuner", ["s2ft", "loramoe"])
def test_a_subclass_with_a_forward_of_its_own_is_refused_by_name(tuner):
    spec = TUNERS[tuner] | ({"targets": {"down_proj": 0.5}} if tuner == "s2ft" else {})
    with pytest.raises(RecipeError, match=r"mlp\.\w+_proj.*`Rounded` computes more"):
        tuned(with_layers(rounded), **spec)


def test_a_subclass_that_writes_the_product_in_another_way_is_a_plain_layer():
    class Transposed(nn.Linear):
        def forward(self, input):
            return input @ self.weight.T

    model = with_layers(lambda child: Transposed(child.in_features, child.out_features, bias=False))
    part, module = tuned(model, kind="spiel")
    assert not part.left_out(module)
    adapted, module = tuned(
        with_layers(lambda child: Transposed(child.in_features, child.out_features, bias=False)), kind="lora"
    )
    moved(adapted, module)
    before = logits(module)
    assert apart(adapted.merge(module), before) < 1e-4


def test_a_subclass_without_a_forward_of_its_own_is_a_plain_layer():
    class Named(nn.Linear):
        pass

    part, module = tuned(
        with_layers(lambda child: Named(child.in_features, child.out_features, bias=False)), kind="spiel"
    )
    assert not part.left_out(module) and any("down_proj" in name for name, _ in part.parameters(module))


def test_spiel_trains_the_other_layers_and_disabled_is_the_base():
    model = with_layers(rounded)
    before = logits(model)
    part, module = tuned(model, **TUNERS["spiel"])
    moved(part, module)
    with part.disabled(module):
        assert apart(module, before) == 0
    assert len(part.left_out(module)) == 6


def test_an_adapter_beside_such_a_layer_is_right_and_never_merged(tmp_path):
    model = with_layers(rounded)
    part, module = tuned(model, **TUNERS["lora"])
    moved(part, module)
    with pytest.raises(ModelError, match="used by `Rounded` in another way"):
        part.refuse_merge(module)
    with pytest.raises(ModelError, match="cannot be merged"):
        part.merge(module)


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_tied_embeddings_are_untied_before_an_adapter_on_one_of_them_is_merged(targets, tmp_path):
    base = family("llama", tie_word_embeddings=True)
    part, module = tuned(base, kind="lora", targets=targets)
    masters = moved(part, module)
    assert apart(module, family("llama", tie_word_embeddings=True)) > 0.02
    again = lambda: family("llama", tie_word_embeddings=True)  # noqa: E731
    assert max(saved_apart(part, module, masters, tmp_path, again)) < 1e-4


def test_gpt2s_tied_head_is_untied_too(tmp_path):
    part, module = tuned(family("gpt2"), kind="lora", targets=["lm_head"])
    assert max(saved_apart(part, module, moved(part, module), tmp_path, lambda: family("gpt2"))) < 1e-4


def test_an_adapter_on_shared_blocks_is_never_merged_layer_by_layer():
    config = peft.LoraConfig(target_modules=["down_proj"], init_lora_weights=False)
    with pytest.raises(ModelError, match="belongs to 2 layers"):
        adapters.merged(peft.get_peft_model(family("zamba"), config))


def test_owners_of_a_weight():
    tied, untied = (Owners(family("llama", tie_word_embeddings=tie)) for tie in (True, False))
    assert tied.tied is not None and tied.of(tied.tied) == 2 and tied.untied(tied.tied) == 1
    assert untied.tied is None


@pytest.mark.parametrize("kind", ["laguna", "afmoe", "hrm_text", "glm", "qwen3_next", "gemma3n_text"])
def test_permute_is_refused_where_something_of_a_unit_would_stay_behind(kind):
    options = {
        "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
        "gemma3n_text": {
            "layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0,
            "vocab_size_per_layer_input": 61, "hidden_size_per_layer_input": 8, "altup_num_inputs": 2,
            "laurel_rank": 8, "intermediate_size": [48, 48], "activation_sparsity_pattern": [0.0, 0.0],
        },
    }  # fmt: skip
    model = family(kind, **options.get(kind, {}))
    before = logits(model)
    try:
        part, module = tuned(model, **TUNERS["s2ft"], permute=True)
    except RecipeError as error:
        assert "permute" in str(error)
    else:
        assert apart(module, before) < 1e-4
        moved(part, module)
        with part.disabled(module):
            assert apart(module, before) < 1e-4


def test_permuting_is_tried_where_no_name_gives_a_coupling_away():
    model = family("llama")
    first = model.model.layers[0].mlp
    scale = torch.linspace(0.2, 3, 48)
    first.act_fn.register_forward_hook(lambda _layer, _inputs, output: output * scale)  # each channel its own
    with pytest.raises(RecipeError, match="Reordering the units"):
        tuned(model, kind="s2ft", targets={"down_proj": 0.3}, permute=True)


def test_heads_have_the_width_that_the_attention_gives_them():
    model = family("deepseek_v3", **OPTIONS["deepseek_v3"])
    part, module = tuned(model, kind="s2ft", targets={"o_proj": 0.25})
    slices = [p for name, p in part.parameters(module) if "o_proj" in name]
    assert sum(p.shape[1] for p in slices) == 2 * 6  # 2 of 8 heads, each 6 = v_head_dim wide


def test_columns_that_are_no_heads_are_refused():
    model = family("llama")
    for layer in model.model.layers:
        layer.self_attn.head_dim = 5
        layer.self_attn.o_proj = nn.Linear(33, 32, bias=False)
    with pytest.raises(RecipeError, match="33 features are no whole number of the heads"):
        tuned(model, kind="s2ft", targets={"o_proj": 0.5})


def test_a_tied_row_that_loading_empties_is_refused_before_the_training():
    with pytest.raises(RecipeError, match="row 0 of the tied embeddings"):
        tuned(family("youtu", num_key_value_heads=4, head_dim=4, tie_word_embeddings=True), kind="full")
    tuned(family("youtu", num_key_value_heads=4, head_dim=4, tie_word_embeddings=True), kind="lora")
    tuned(family("llama", tie_word_embeddings=True), kind="full")
    tuned(family("gemma3_text", tie_word_embeddings=True), kind="full")
