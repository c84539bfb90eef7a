"""Adapters from elsewhere: every tensor is counted, whichever PEFT method wrote it; a merge changes no logit."""

import json
import shutil
import warnings

import peft
import pytest
from safetensors.torch import load_file, save_file

from luthier import parts
from luthier.errors import ModelError
from luthier.models.loading.load import folded, load_model
from luthier.models.nano.build import nano_tokenizer
from luthier.recipe.settings import Model as ModelSettings
from luthier.steps.train import made_ready
from support.families import apart, family, logits

KINDS = {
    "lora": peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    "dora": peft.LoraConfig(target_modules=["q_proj"], use_dora=True, init_lora_weights=False),
    "head": peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False),
    "tokens": peft.LoraConfig(target_modules=["q_proj"], trainable_token_indices=[1, 2], init_lora_weights=False),
    "tied": peft.LoraConfig(target_modules=["embed_tokens", "lm_head"], init_lora_weights=False),
    "ia3": peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], init_ia3_weights=False),
    "vera": peft.VeraConfig(target_modules=["q_proj"], r=4, init_weights=False),
    "vblora": peft.VBLoRAConfig(target_modules=["q_proj"], vector_length=8, num_vectors=8),
    "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    family("llama", vocab_size=264, tie_word_embeddings=True).save_pretrained(folder)
    nano_tokenizer().save_pretrained(folder)
    return folder


def adapter_of(base, folder, config, kind="llama"):
    """A folder with an adapter of this base, and the logits of the adapted model."""
    model = family(kind, vocab_size=264, **({"tie_word_embeddings": True} if kind == "llama" else {}))
    model.name_or_path = str(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, config).eval()
        adapted.save_pretrained(folder)
    return logits(adapted)


def loaded(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing of PEFT reaches the terminal
        return load_model(ModelSettings(path=str(folder), dtype="float32"), folder)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"])
def test_an_adapter_that_is_no_change_of_weights_is_not_trained_further(base, tmp_path, kind):
    extra = {"encoder_hidden_size": 8} if kind == "PromptEncoderConfig" else {}
    adapter_of(base, tmp_path, getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3, **extra))
    model = folded(loaded(tmp_path)).module
    for tuner in ("full", "lora"):
        with pytest.raises(ModelError, match="cannot be merged into the weights of LlamaForCausalLM"):
            made_ready([parts.build("tuner", tuner)], model)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_every_kind_are_complete_and_merge(base, tmp_path, kind):
    expected = adapter_of(base, tmp_path, KINDS[kind])
    model = loaded(tmp_path)
    assert apart(model.module, expected) < 1e-5
    assert apart(folded(model).module, expected) < 1e-5


def changed(folder, change):
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: dict(list(t.items())[::2]), "lacks 4 tensors"),
        (lambda t: {f"{n}.old": x for n, x in t.items()}, "lacks 8 tensors"),
        (lambda t: {n.replace("q_proj", "query"): x for n, x in t.items()}, "lacks 4 tensors"),
        (lambda t: t | {n.replace("layers.0", "layers.7"): x.clone() for n, x in t.items()}, "holds 4 tensors"),
    ],
)
def test_missing_misnamed_and_surplus_tensors_are_refused(base, tmp_path, change, words):
    adapter_of(base, tmp_path, KINDS["lora"])
    changed(tmp_path, change)
    with pytest.raises(ModelError, match=words):
        loaded(tmp_path)


def test_an_adapter_of_a_dense_model_is_refused_on_a_mixture_of_experts(base, tmp_path):
    other = tmp_path / "mixture"
    family("qwen3_moe", vocab_size=264, decoder_sparse_step=1).save_pretrained(other)
    nano_tokenizer().save_pretrained(other)
    dense = peft.LoraConfig(target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"], init_lora_weights=False)
    adapter_of(base, tmp_path / "adapter", dense)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(other)}))
    with pytest.raises(ModelError):
        loaded(tmp_path / "adapter")


def test_a_changed_bias_needs_a_bias_to_be_merged_into(base, tmp_path):
    config = peft.LoraConfig(target_modules=["q_proj"], lora_bias=True, init_lora_weights=False)
    expected = adapter_of(base, tmp_path, config)
    model = loaded(tmp_path)
    assert apart(model.module, expected) < 1e-5  # evaluated it is right
    with pytest.raises(ModelError, match="has no bias beside it"):
        folded(model)


def test_a_mixtures_adapter_is_read_through_the_names_of_the_family(tmp_path):
    folder = tmp_path / "mixture"
    family("qwen3_moe", vocab_size=264, decoder_sparse_step=1).save_pretrained(folder)
    nano_tokenizer().save_pretrained(folder)
    config = peft.LoraConfig(target_modules="all-linear", init_lora_weights=False)
    expected = adapter_of(folder, tmp_path / "adapter", config, "qwen3_moe")
    assert apart(loaded(tmp_path / "adapter").module, expected) < 1e-4
    shutil.rmtree(folder)
