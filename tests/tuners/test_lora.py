"""lora: PEFT's adapter in PEFT's format, with the fp32 masters in it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from luthier import parts
from luthier.conformance.tiny import tiny_model, tiny_rows
from luthier.conformance.training import trainer
from luthier.engine.trainer import Batching
from luthier.errors import RecipeError


def lora(**options):
    return parts.build("tuner", {"kind": "lora", **options})


def trained_parameters(tuner):
    return dict(tuner.parameters(tuner.apply(tiny_model().requires_grad_(False), {"seed": 3})))


def test_only_the_adapter_is_trained():
    named = trained_parameters(lora(r=4))
    assert named and all("lora_" in name for name in named)
    assert len(named) == 2 * 7 * 2  # A and B of seven linears in two layers


def test_alpha_defaults_to_twice_the_rank():
    model = lora(r=4).apply(tiny_model(), {"seed": 0})
    assert model.peft_config["default"].lora_alpha == 8


def test_the_seed_fixes_the_start_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    first, second = trained_parameters(lora()), trained_parameters(lora())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = dict(lora().parameters(lora().apply(tiny_model(), {"seed": 4})))
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_disabled_is_the_base():
    model = tiny_model()
    ids = torch.arange(9)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        tuner = lora()
        tuned = tuner.apply(model, {"seed": 0})
        for name, p in tuned.named_parameters():
            if "lora_" in name:
                p += 0.2
        with tuner.disabled(tuned):
            assert torch.equal(tuned(input_ids=ids).logits, before)
        assert not torch.allclose(tuned(input_ids=ids).logits, before)


def test_saved_values_are_the_masters(tmp_path):
    tuner = lora(r=2, targets=["q_proj"])
    run = trainer(parts.build("objective", "sft"), tuner, tiny_rows(), Batching(), dtype=torch.bfloat16)
    run.train()
    tuner.save(run.policy.module, {n: m.detach() for n, m in run.masters.master.items()}, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    name, master = next(iter(run.masters.master.items()))
    assert torch.equal(saved[name.replace(".default", "")], master.detach())
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 2


def test_wrong_options():
    with pytest.raises(RecipeError, match="no option `rank`"):
        lora(rank=4)
    with pytest.raises(RecipeError, match="dropout"):
        lora(dropout=1.5)


def test_layers_that_the_model_lacks_are_an_error_in_words():
    with pytest.raises(RecipeError, match="cannot be attached"):
        lora(targets=["qproj"]).apply(tiny_model(), {"seed": 0})
