import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import peft
import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from luthier.errors import ModelError
from luthier.models.loading import load
from luthier.models.loading.load import fast_bfloat16, load_model, load_tokenizer, resolve_model
from luthier.models.nano.build import nano_tokenizer


@dataclass
class Settings:
    path: str
    revision: str | None = None
    dtype: str = "float32"
    attention: str = "auto"
    remote_code: bool = False


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete tiny model folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = LlamaConfig(
        vocab_size=264, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    nano_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


@pytest.fixture
def adapter(folder: Path, tmp_path: Path) -> Path:
    module = LlamaForCausalLM.from_pretrained(folder)
    tuned = peft.get_peft_model(module, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def failing(settings: Settings, base: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_model(settings, base)
    return caught.value


def test_a_relative_folder_starts_from_the_recipe(folder: Path):
    assert resolve_model("tiny", folder.parent) == folder
    assert resolve_model("./tiny", folder.parent) == folder
    assert resolve_model(str(folder), Path("/elsewhere")) == folder


def test_a_loaded_model_is_in_eval_mode_and_answers_like_plain_transformers(folder: Path):
    loaded = load_model(Settings("tiny"), folder.parent)
    ids = torch.tensor([[5, 9, 30]])
    plain = LlamaForCausalLM.from_pretrained(folder).eval()
    assert torch.equal(loaded.module(ids).logits, plain(ids).logits)
    assert not loaded.module.training
    assert loaded.name == "tiny"
    assert loaded.tokenizer("ab").input_ids == [69, 70]
    assert loaded.module.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float64"])
def test_dtype_is_how_the_weights_are_stored(folder: Path, name: str):
    module = load_model(Settings("tiny", dtype=name), folder.parent).module
    assert {parameter.dtype for parameter in module.parameters()} == {getattr(torch, name)}


@pytest.mark.parametrize("fast", [True, False])
def test_dtype_auto_follows_the_processor(folder: Path, fast: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": fast, "amx_bf16": False})
    assert fast_bfloat16() is fast
    module = load_model(Settings("tiny", dtype="auto"), folder.parent).module
    assert module.dtype == (torch.bfloat16 if fast else torch.float32)


def test_attention_can_be_chosen(folder: Path):
    module = load_model(Settings("tiny", attention="eager"), folder.parent).module
    assert module.config._attn_implementation == "eager"


def test_the_weights_id_follows_content_and_not_place(folder: Path, tmp_path: Path):
    first = load_model(Settings("tiny"), folder.parent).weights_id
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert load_model(Settings(str(moved)), tmp_path).weights_id == first
    module = LlamaForCausalLM.from_pretrained(moved)
    with torch.no_grad():
        module.lm_head.weight[3, 3] += 1e-3
    module.save_pretrained(moved)
    assert load_model(Settings(str(moved)), tmp_path).weights_id != first


def test_the_weights_id_follows_the_config(folder: Path):
    first = load_model(Settings("tiny"), folder.parent).weights_id
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5000.0}))
    assert load_model(Settings("tiny"), folder.parent).weights_id != first


def test_names_are_resolved_without_torch():
    code = "import sys, luthier.models.loading.load\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_adapter_folder_loads_on_top_of_its_base(adapter: Path, folder: Path):
    loaded = load_model(Settings("adapter"), adapter.parent)
    plain = peft.PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(folder), str(adapter)).eval()
    base = LlamaForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([[5, 9, 30, 7]])
    assert torch.equal(loaded.module(ids).logits, plain(ids).logits)
    assert not torch.allclose(loaded.module(ids).logits, base(ids).logits)
    assert loaded.tokenizer.eos_token == "<|end|>"


def test_a_saved_adapter_computes_in_the_models_type_as_it_did_in_training(adapter: Path, folder: Path):
    module = load_model(Settings("adapter", dtype="bfloat16"), adapter.parent).module
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}


def test_an_adapters_id_does_not_depend_on_where_its_base_lies(adapter: Path, folder: Path, tmp_path: Path):
    first = load_model(Settings("adapter"), adapter.parent).weights_id
    config = json.loads((adapter / "adapter_config.json").read_text())
    moved = shutil.copytree(folder, tmp_path / "moved")
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(moved)}))
    assert load_model(Settings("adapter"), adapter.parent).weights_id == first
    assert load_model(Settings("tiny"), folder.parent).weights_id != first


def test_an_adapter_of_a_bundled_model_finds_it_in_this_machines_cache(
    adapter: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    config = json.loads((adapter / "adapter_config.json").read_text())
    gone = "/another/machine/models/nano"
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": gone}))
    monkeypatch.setattr(load, "bundled_path", lambda name: folder if name == "nano" else None)
    assert isinstance(load_model(Settings("adapter"), adapter.parent).module, peft.PeftModel)


def test_a_saved_adapter_names_a_base_that_plain_peft_can_load(folder: Path, tmp_path: Path):
    module = load_model(Settings("tiny"), folder.parent).module
    tuned = peft.get_peft_model(module, peft.LoraConfig(target_modules=["q_proj"]))
    tuned.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(folder)


def test_a_tokenizer_without_padding_pads_with_its_end(folder: Path):
    tokenizer = nano_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(Settings("tiny"), folder.parent).pad_token == "<|end|>"


def test_a_missing_folder_is_named(tmp_path: Path):
    error = failing(Settings("./nothing"), tmp_path)
    assert str(tmp_path / "nothing") in error.message
    assert "smollm2-135m-instruct" in str(error.hint)


def test_a_mistyped_bundled_name_gets_the_nearest_one(tmp_path: Path):
    error = failing(Settings("smollm2-135m-instrukt"), tmp_path)
    assert "Did you mean `smollm2-135m-instruct`?" in str(error.hint)


def test_a_hub_id_without_the_hub_says_so(tmp_path: Path):
    assert resolve_model("someone/some-model", tmp_path) == "someone/some-model"
    assert "hub" in failing(Settings("someone/some-model"), tmp_path).message


def test_a_folder_that_is_no_model_is_told_by_what_it_holds(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("{}")
    error = failing(Settings("data"), tmp_path)
    assert "no config.json and no *.safetensors" in error.message
    assert "train.jsonl" in error.message


def test_a_file_is_no_model_folder(tmp_path: Path):
    (tmp_path / "model.gguf").write_text("")
    assert "is a file" in failing(Settings("model.gguf"), tmp_path).message


def test_a_run_folder_points_to_the_model_inside(folder: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    shutil.move(folder, tmp_path / "run" / "model")
    assert str(tmp_path / "run" / "model") in str(failing(Settings("run"), tmp_path).hint)


def test_pickled_weights_are_refused(folder: Path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    error = failing(Settings("tiny"), folder.parent)
    assert "no *.safetensors" in error.message
    assert "pickled" in str(error.hint)


def test_damaged_weights_are_an_error(folder: Path):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "damaged" in str(failing(Settings("tiny"), folder.parent).hint)


def test_a_missing_weight_is_never_made_up(folder: Path):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    message = failing(Settings("tiny"), folder.parent).message
    assert "lacks the weight model.layers.0.mlp.up_proj.weight, which" in message


def test_a_model_that_is_not_causal_is_refused(folder: Path):
    config = BertConfig(
        vocab_size=264, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(folder)
    assert "lacks the weight" in failing(Settings("tiny"), folder.parent).message


def test_an_unknown_architecture_is_refused_with_a_hint(folder: Path):
    (folder / "config.json").write_text('{"model_type": "harpsichord"}')
    assert "causal language models" in str(failing(Settings("tiny"), folder.parent).hint)


def test_code_of_a_repository_runs_only_if_the_recipe_says_so(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    (folder / "own.py").write_text("raise SystemExit('ran code of the repository')")
    assert "remote_code: true" in str(failing(Settings("tiny"), folder.parent).hint)


def test_a_folder_without_tokenizer_is_told(folder: Path):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "has no tokenizer" in failing(Settings("tiny"), folder.parent).message


def test_an_adapter_without_weights_is_told(adapter: Path):
    (adapter / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors" in failing(Settings("adapter"), adapter.parent).message
