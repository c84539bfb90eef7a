"""A model that could not be saved is told before the training; what was saved is read back and compared."""

import json

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.errors import ModelError, RunError
from luthier.models.loading.saving import make_savable, read_back
from luthier.models.nano.build import nano_tokenizer
from luthier.recipe import load_recipe
from luthier.recipe.settings import Model as ModelSettings
from luthier.run_folder import read_json
from luthier.steps.run import run_recipe
from support.families import family

SETTINGS = ModelSettings(path="unused", dtype="float32")
ROW = list(range(3, 20))


def saved(folder, **options):
    model = family("llama", vocab_size=264, eos_token_id=259, **options)
    model.save_pretrained(folder)
    nano_tokenizer().save_pretrained(folder)
    return model


def changed(folder, change):
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def test_the_same_weights_are_the_same_model(tmp_path):
    model = saved(tmp_path)
    report = read_back(tmp_path, SETTINGS, model, ROW)
    assert report.difference is not None and report.difference < 1e-6 and report.tokens == len(ROW)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_model_is_an_error_that_names_the_difference(tmp_path, dtype):
    model = saved(tmp_path).to(dtype)
    first = "model.layers.0.mlp.down_proj.weight"
    changed(tmp_path, lambda tensors: tensors | {first: torch.zeros_like(tensors[first])})
    with pytest.raises(RunError, match=r"is not the trained model: the logits of a row differ by \d"):
        read_back(tmp_path, SETTINGS, model, ROW)
    assert (tmp_path / "model.safetensors").is_file()


def test_a_row_of_the_tied_embeddings_that_loading_empties_is_noticed(tmp_path):
    model = saved(tmp_path, tie_word_embeddings=True)
    key = "model.embed_tokens.weight"

    def emptied(tensors):
        tensors[key][40] = 0
        return tensors

    changed(tmp_path, emptied)
    with pytest.raises(RunError, match="is not the trained model"):
        read_back(tmp_path, SETTINGS, model, ROW)


def test_a_folder_that_cannot_be_loaded_is_an_error(tmp_path):
    model = saved(tmp_path)
    changed(tmp_path, lambda tensors: dict(list(tensors.items())[1:]))
    with pytest.raises(RunError, match="cannot be loaded"):
        read_back(tmp_path, SETTINGS, model, ROW)


def test_without_memory_or_finite_numbers_nothing_is_compared_and_that_is_said(tmp_path, monkeypatch):
    model = saved(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000})())
        assert "memory is short" in read_back(tmp_path, SETTINGS, model, ROW).reason
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    assert "not finite" in read_back(tmp_path, SETTINGS, model, ROW).reason


def test_a_flag_that_forbids_saving_is_switched_off_and_named():
    model = family("llama")
    model.config._output_attentions = True
    with pytest.raises(Exception, match="output_attentions"):
        model.config.save_pretrained("unused")
    assert make_savable(model) == ["`output_attentions` of config.json is off: a model with it cannot be saved."]
    assert make_savable(model) == [] and not model.config.output_attentions


def test_a_config_that_cannot_be_written_is_refused(monkeypatch):
    model = family("llama")
    model.config.stray = object()
    with pytest.raises(ModelError, match="could not be saved after the training"):
        make_savable(model)


def recipe(folder, **more):
    lines = [json.dumps({"prompt": f"{n} plus 1?", "completion": f" {n + 1}"}) for n in range(12)]
    (folder / "data.jsonl").write_text("\n".join(lines))
    content = {
        "model": "model",
        "data": {"train": "data.jsonl", "validation": None, "test": 2, "render": "{prompt}{completion}"},
        "train": {"tuner": "full", "batch": {"records": 4}, "precision": "float32"},
        "budget": {"updates": 2},
        "evaluate": {"metric": "perplexity", "perplexity": False},
    }
    return load_recipe(content | more, base=folder)


def test_a_run_says_what_it_read_back_and_what_it_trained(tmp_path):
    saved(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"output_attentions": True}))
    record = run_recipe(recipe(tmp_path), tmp_path / "run", [])
    assert record["saved"]["difference"] < 1e-5
    kinds = {kind["kind"]: kind for kind in record["train"]["trains"]["kinds"]}
    assert all(kind["reached"] == 1 for kind in kinds.values()) and "dense layers" in kinds
    assert any("output_attentions" in line for line in record["warnings"])


def test_a_run_whose_model_is_lost_in_saving_ends_with_the_reason_and_keeps_the_folder(tmp_path, monkeypatch):
    from transformers import LlamaForCausalLM

    saved(tmp_path / "model")
    whole = LlamaForCausalLM.save_pretrained

    def without_a_layer(self, folder, **more):
        weight = self.model.layers[1].mlp.up_proj.weight
        kept, weight.data = weight.data, torch.zeros_like(weight)
        whole(self, folder, **more)
        weight.data = kept

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", without_a_layer)
    with pytest.raises(RunError, match="is not the trained model"):
        run_recipe(recipe(tmp_path), tmp_path / "run", [])
    record = read_json(tmp_path / "run" / "run.json")
    assert record["status"] == "failed" and "differ by" in record["error"]
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    monkeypatch.undo()
    assert run_recipe(recipe(tmp_path), tmp_path / "run", [])["status"] == "done"  # its checkpoint was kept


def test_a_full_disk_at_the_last_save_is_told_in_words(tmp_path, monkeypatch):
    from transformers import LlamaForCausalLM

    saved(tmp_path / "model")

    def full(self, folder, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full)
    with pytest.raises(RunError, match=r"cannot be saved.*No space left"):
        run_recipe(recipe(tmp_path), tmp_path / "run", [])
    assert read_json(tmp_path / "run" / "run.json")["status"] == "failed"


def test_a_merge_that_a_later_step_needs_is_tried_before_the_training(tmp_path, monkeypatch):
    from luthier.tuners.lora import LoRA

    def refused(self, model):
        raise ModelError("The adapter cannot be merged.")

    saved(tmp_path / "model")
    monkeypatch.setattr(LoRA, "refuse_merge", refused)
    train = {"tuner": {"kind": "lora", "r": 2}, "batch": {"records": 4}, "precision": "float32"}
    steps = {"first": {"do": "train"}, "second": {"do": "train"}}
    with pytest.raises(ModelError, match="cannot be merged"):
        run_recipe(recipe(tmp_path, train=train, steps=steps), tmp_path / "run", [])
    assert not [line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert run_recipe(recipe(tmp_path, train=train), tmp_path / "alone", [])["status"] == "done"
