"""A run from Python is the run from YAML, bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file

import luthier
from luthier.run_folder import read_jsonl

YAML = """
model: nano
data: {train: data.jsonl, targets: completion}
train:
  objective: {kind: dft, prob_power: 0.5}
  tuner: {kind: lora, r: 4}
  optimizer: {lr: 5e-4}
  select: {kind: max_loss, keep: 0.75}
  batch: {records: 8}
budget: {updates: 3}
evaluate: {metric: exact}
seed: 5
"""
CONTENT = {
    "name": "mine",
    "model": "nano",
    "data": {"train": "data.jsonl", "targets": "completion"},
    "train": {
        "objective": {"kind": "dft", "prob_power": 0.5},
        "tuner": {"kind": "lora", "r": 4},
        "optimizer": {"lr": 5e-4},
        "select": {"kind": "max_loss", "keep": 0.75},
        "batch": {"records": 8},
    },
    "budget": {"updates": 3},
    "evaluate": {"metric": "exact"},
    "seed": 5,
}


@pytest.fixture
def folder(tmp_path):
    words = [f"{a}{b}{c}" for a in "abc" for b in "fgh" for c in "klm"]
    lines = [json.dumps({"prompt": f"reverse {word}", "completion": word[::-1]}) for word in words]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "mine.yaml").write_text(YAML)
    return tmp_path


def result(recipe, folder):
    luthier.run(recipe, folder, [])
    losses = [(line["loss"], line["gradient_norm"]) for line in read_jsonl(folder / "metrics.jsonl") if "loss" in line]
    return losses, load_file(folder / "model" / "adapter_model.safetensors")


def test_a_dict_and_a_yaml_file_give_the_same_bits(folder):
    from_yaml, from_python = luthier.load_recipe(folder / "mine.yaml"), luthier.load_recipe(CONTENT, base=folder)
    assert from_yaml.data == from_python.data
    losses, weights = result(from_yaml, folder / "one")
    again, others = result(from_python, folder / "two")
    assert losses == again and len(losses) == 3
    assert weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)
