"""What trains besides the rows' likelihood: dropout where two passes are compared, and a router's loss."""

import io
import json
import math

import pytest
import torch
import transformers
from rich.console import Console
from safetensors.torch import load_file

from luthier.errors import LuthierError
from luthier.modalities.open import open_workspace
from luthier.models.loading.bundled import bundled_path
from luthier.recipe import load_recipe
from luthier.run_folder import read_jsonl
from luthier.steps.check_page import check_recipe
from luthier.steps.evaluate import evaluate_model
from luthier.steps.run import run_recipe

GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
MIXTRAL = {"model_type": "mixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
MIXTRAL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
LENGTH = '''"""Long answers."""

from luthier.rewards.base import Reward


class Length(Reward):
    """Characters."""

    def score(self, answer):
        return len(answer.text) + len(set(answer.text))
'''
WORDS = ["alpha", "bravo", "delta", "lima", "oscar", "tango", "zulu", "kilo"]


def saved(folder, model_type, **more):
    """A random model of this configuration, with nano's tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(bundled_path("nano"))
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.AutoConfig.for_model(model_type, vocab_size=len(tokenizer), pad_token_id=0, **ends, **more)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(5.0)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return "model"


def run(folder, model, objective, name, **more):
    """The record of a run of one update, and the update's line in metrics.jsonl."""
    records = []
    for number, word in enumerate(WORDS):
        pair = {"prompt": f"say {word}", "chosen": word, "rejected": word[::-1] * (1 + number % 3)}
        single = {"prompt": f"say {word}", "completion": word * (1 + number % 3)}
        labelled = {**single, "label": number % 2 == 0}
        records.append({"dpo": pair, "kto": labelled}.get(objective, single))
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    train = {"tuner": "full", "precision": "float32", "objective": objective, "batch": {"records": 8}}
    content = {
        "model": model,
        "data": {"train": "data.jsonl", "validation": None, "test": None},
        "train": {**train, **more.pop("train", {})},
        "budget": {"updates": 1},
        "evaluate": {"perplexity": False},
        **more,
    }
    record = run_recipe(load_recipe(content, base=folder), folder / name, [])
    return record, next(line for line in read_jsonl(folder / name / "metrics.jsonl") if "loss" in line)


@pytest.mark.parametrize(("objective", "loss"), [("dpo", math.log(2)), ("kto", 0.5)])
def test_the_first_loss_beside_a_reference_is_that_of_no_difference(tmp_path, objective, loss):
    record, line = run(tmp_path, saved(tmp_path, **GPT2), objective, "run")
    assert line["loss"] == pytest.approx(loss, abs=1e-4)
    (note,) = record["train"]["notes"]
    assert note.startswith("Dropout (0.1) is off") and "reference `initial`" in note


def test_a_tuners_dropout_is_off_too(tmp_path):
    lora = {"train": {"tuner": {"kind": "lora", "dropout": 0.3}}}
    llama = {key: number for key, number in MIXTRAL.items() if "experts" not in key}
    model = saved(tmp_path, **{**llama, "model_type": "llama", "attention_dropout": 0.2})
    record, line = run(tmp_path, model, "dpo", "run", **lora)
    assert line["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert record["train"]["notes"][0].startswith("Dropout (0.2, 0.3) is off")


def test_the_first_divergence_from_the_base_is_nothing(tmp_path):
    _, line = run(tmp_path, saved(tmp_path, **GPT2), "asft", "run")
    assert line["kl"] == pytest.approx(0.0, abs=1e-5)


def test_the_first_ratio_of_a_rollout_is_one(tmp_path):
    (tmp_path / "length.py").write_text(LENGTH)
    rl = {"strategy": {"kind": "plain", "group": 4}, "generate": {"max_new_tokens": 6}}
    record, line = run(tmp_path, saved(tmp_path, **GPT2), "grpo", "run", reward=["./length.py"], rl=rl)
    assert line["ratio"] == pytest.approx(1.0, abs=1e-4) and line["clip_fraction"] == 0.0
    assert "that sampled" in record["train"]["notes"][0]


def test_dropout_is_off_in_checkpointed_layers_that_drop_themselves(tmp_path):
    opt = {"model_type": "opt", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48}
    model = saved(tmp_path, **opt, word_embed_proj_dim=32, max_position_embeddings=256, dropout=0.3)
    for checkpointing in (False, True):
        _, line = run(tmp_path, model, "dpo", f"run-{checkpointing}", train={"checkpointing": checkpointing})
        assert line["loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_plain_training_drops_as_the_config_says(tmp_path):
    model = saved(tmp_path, **GPT2)
    record, dropped = run(tmp_path, model, "sft", "dropped")
    assert record["train"]["notes"] == []
    config = json.loads((tmp_path / model / "config.json").read_text())
    (tmp_path / model / "config.json").write_text(
        json.dumps({**config, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0})
    )
    _, kept = run(tmp_path, model, "sft", "kept")
    assert abs(kept["loss"] - dropped["loss"]) > 1e-3


@pytest.mark.parametrize("layout", ["auto", "packed"])
def test_a_mixtures_router_loss_is_part_of_the_loss_under_every_cut(tmp_path, layout):
    model = saved(tmp_path, **MIXTRAL, output_router_logits=True, router_aux_loss_coef=0.5)
    weights, lines = [], []
    for micro in (16, 4096):
        train = {"batch": {"records": 8, "micro": micro, "layout": layout}}
        record, line = run(tmp_path, model, "sft", f"run-{micro}", train=train)
        lines.append(line)
        weights.append(load_file(tmp_path / f"run-{micro}" / "model" / "model.safetensors"))
    (note,) = record["train"]["notes"]
    assert note.startswith("0.5 times the router's loss")
    assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], rel=1e-5)
    assert lines[0]["loss"] == pytest.approx(lines[0]["nll"] + 0.5 * lines[0]["router_loss"], rel=1e-4)
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=1e-5), name
    # By transformers alone: the loss of each row, averaged.
    module = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / model)
    losses = []
    for row in rendered(tmp_path, model):
        losses.append(float(module(input_ids=torch.as_tensor(row.ids).long()[None]).aux_loss.detach()))
    assert lines[0]["router_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def rendered(folder, model):
    recipe = load_recipe(
        {"model": model, "data": {"train": "data.jsonl", "validation": None, "test": None}}, base=folder
    )
    return open_workspace(recipe, None).prepared.train


def test_a_router_loss_beside_a_reference_is_named_as_left_out(tmp_path):
    model = saved(tmp_path, **MIXTRAL, output_router_logits=True)
    record, line = run(tmp_path, model, "dpo", "run")
    assert line["loss"] == pytest.approx(math.log(2), abs=1e-4)
    (note,) = record["train"]["notes"]
    assert "is not part of the loss" in note and "reference `initial`" in note


def test_padding_and_tokens_beyond_the_embedding(tmp_path):
    model = saved(tmp_path, **GPT2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / model)
    known = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<fresh pad>"})
    tokenizer.save_pretrained(tmp_path / model)
    assert tokenizer.pad_token_id >= known
    run(tmp_path, model, "sft", "padded")
    tokenizer.add_tokens(["alpha"])
    tokenizer.save_pretrained(tmp_path / model)
    with pytest.raises(LuthierError, match=rf"The token 'alpha' has the id .* \(ids 0 to {known - 1}\)"):
        run(tmp_path, model, "sft", "beyond")


@pytest.mark.parametrize("metric", ["perplexity", "exact"])
def test_eval_refuses_what_run_refuses(tmp_path, metric):
    run(tmp_path, saved(tmp_path, **GPT2), "sft", "run")
    gemma = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    gemma |= {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}
    minicpm = {**gemma, "model_type": "minicpm3", "q_lora_rank": 8, "kv_lora_rank": 8, "dim_model_base": 8}
    minicpm |= {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}
    refusals = {
        "changes its logits": minicpm,
        "sees the future": {**gemma, "model_type": "gemma3_text", "use_bidirectional_attention": True},
    }
    for words, config in refusals.items():
        model = saved(tmp_path, **config)
        for refused in (scored, checked):
            with pytest.raises(LuthierError, match=words):
                refused(tmp_path, model, metric)
        with pytest.raises(LuthierError, match=words):
            run(tmp_path, model, "sft", f"run {words}")


def scored(folder, model, metric):
    data, console = str(folder / "data.jsonl"), Console(file=io.StringIO())
    evaluate_model(str(folder / model), data=data, metric=metric, limit=4, overrides=[], console=console)


def checked(folder, model, metric):
    data = {"train": "data.jsonl", "validation": None, "test": None}
    check_recipe(load_recipe({"model": model, "data": data}, base=folder), False, Console(file=io.StringIO()))
