"""full: everything moves, and the folder is a complete model."""

import torch

from luthier import parts
from luthier.conformance.tiny import tiny_model


def test_every_parameter_is_trained_once():
    model = tiny_model()
    tuner = parts.build("tuner", "full")
    named = dict(tuner.parameters(tuner.apply(model.requires_grad_(False), {})))
    assert sum(p.numel() for p in named.values()) == sum(p.numel() for p in model.parameters())
    assert tuner.merge(model) is model


def test_the_folder_loads_in_plain_transformers(tmp_path):
    from transformers import AutoModelForCausalLM

    model = tiny_model(torch.float32)
    parts.build("tuner", "full").save(model, {}, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)
