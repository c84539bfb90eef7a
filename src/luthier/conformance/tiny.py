"""Tiny models and rows that parts are tried on: one model for each modality, and rows of every form of record."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from torch import nn

from luthier.data.batches import prompt_length
from luthier.data.pairs import rows_of_record
from luthier.diffusion._networks import FlowMLP
from luthier.diffusion.policy import PREFIX, DenoiserPolicy
from luthier.models.encoder import EncoderPolicy
from luthier.models.policy import TokenPolicy
from luthier.objectives.base import Objective
from luthier.objectives.sum import members_of
from luthier.types import Row, Stream
from luthier.vision._encoders import DualEncoder
from luthier.vision.digits import SIDE, digit_rows

VOCABULARY, RECORDS = 61, 8
CLASSES = 4


@dataclass(frozen=True)
class TinyModel:
    """A model `module(dtype, seed)`, what objectives see of it, and rows `rows(count, seed)`."""

    module: Callable[[torch.dtype, int], nn.Module]
    policy: Callable[[nn.Module], Any]
    rows: Callable[[int, int], list[Row]]


def seeded(make: Callable[[], nn.Module], dtype: torch.dtype, seed: int) -> nn.Module:
    """A module, the same for the same seed, whatever was drawn before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().to(dtype=dtype).eval()


def dual_encoder(module: nn.Module) -> EncoderPolicy:
    """Digits and their labels, seen through one space."""
    return EncoderPolicy(module, {"image": "image", "label": "label"})


def latent_rows(rows: Sequence[Row]) -> list[Row]:
    """Digits as clean samples under their labels."""
    return [
        replace(row, streams={"latent": row.streams["image"], PREFIX + "label": row.streams["label"]}) for row in rows
    ]


def _judged_rows(count: int, seed: int) -> list[Row]:
    """Clean samples with a level and a judgement each, as a rollout brings them."""
    rows = []
    for index, row in enumerate(latent_rows(digit_rows(count, seed, CLASSES))):
        level, r = Stream(0.1 + 0.8 * index / count, "row"), Stream(0.15 + 0.7 * (index * 5 % count) / count, "row")
        rows.append(replace(row, streams={**row.streams, "level": level, "optimality": r}))
    return rows


def tiny_model(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """A Llama with 2 layers, width 32 and tied embeddings, the same for the same seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    return seeded(lambda: LlamaForCausalLM(config), dtype, seed)


def tiny_rows(count: int = RECORDS, seed: int = 0, targets: bool = True) -> list[Row]:
    """Records of unequal length; the first tokens of each are its prompt, weights are not all 1."""
    draw = numpy.random.default_rng(seed)
    rows = []
    for index in range(count):
        length = int(draw.integers(6, 22))
        weights = numpy.where(draw.random(length) < 0.3, 0.5, 1.0).astype(numpy.float32)
        weights[: int(draw.integers(1, 5))] = 0.0
        ids = draw.integers(0, VOCABULARY, length).astype(numpy.int32)
        rows.append(Row(f"record-{index}", ids, {"weights": Stream(weights * targets, "token", 0.0)}))
    return rows


def tiny_pairs(count: int = RECORDS, seed: int = 0, targets: bool = True) -> list[Row]:
    """Preference pairs: two continuations of one prompt, of unequal length."""
    draw = numpy.random.default_rng(seed)
    rows: list[Row] = []
    for index in range(count):
        prompt = draw.integers(0, VOCABULARY, int(draw.integers(2, 6)))
        sides = []
        for _ in range(2):
            answer = draw.integers(0, VOCABULARY, int(draw.integers(3, 12)))
            weights = numpy.repeat(numpy.array([0.0, targets], numpy.float32), [len(prompt), len(answer)])
            ids = numpy.concatenate([prompt, answer]).astype(numpy.int32)
            sides.append(Row("", ids, {"weights": Stream(weights, "token")}))
        rows += rows_of_record(f"record-{index}", sides)
    return rows


def tiny_labelled(count: int = RECORDS, seed: int = 0, targets: bool = True) -> list[Row]:
    """Records of one answer each, which every second of them says to be a good one."""
    rows = tiny_rows(count, seed, targets)
    return [row for place, one in enumerate(rows) for row in rows_of_record(one.id, [one], label=place % 2 == 0)]


def with_common_prompts(rows: Sequence[Row]) -> list[Row]:
    """Every second row with the prompt of the one before it, long enough to be shared."""
    found: list[Row] = []
    for place, row in enumerate(rows):
        start = rows[place - place % 2]
        length = prompt_length(row)
        ids = numpy.concatenate([numpy.resize(start.ids[: prompt_length(start)], 5), row.ids[length:]])
        streams = {
            name: replace(one, values=numpy.concatenate([numpy.zeros(5, one.values.dtype), one.values[length:]]))
            if one.axis == "token"
            else one
            for name, one in row.streams.items()
        }
        found.append(replace(row, ids=ids, streams=streams))
    return found


TINY_MODELS: Mapping[str, TinyModel] = {
    "language": TinyModel(tiny_model, TokenPolicy, tiny_rows),
    "contrastive": TinyModel(  # a bias at which wrong pairs weigh as much as right ones
        lambda dtype, seed: seeded(lambda: DualEncoder(8, CLASSES, bias=-1.0), dtype, seed),
        dual_encoder,
        lambda count, seed: digit_rows(count, seed, CLASSES),
    ),
    "diffusion": TinyModel(
        lambda dtype, seed: seeded(lambda: FlowMLP(SIDE * SIDE, 16, 2, CLASSES), dtype, seed),
        DenoiserPolicy,
        _judged_rows,
    ),
}


def tiny_model_of(objective: Objective) -> TinyModel:
    """The tiny model and rows that an objective is tried on."""
    return TINY_MODELS[members_of(objective)[0].MODALITY]


def with_streams(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The rows with made-up values for token streams that they lack, such as a rollout would bring.

    Log-probabilities lie around those of a uniform distribution, other values around 0.
    """
    filled = []
    for index, row in enumerate(rows):
        made = dict(row.streams)
        for name in names:
            draw = numpy.random.default_rng([index, *name.encode()])
            centre = -math.log(VOCABULARY) if "logprobs" in name else 0.0
            values = draw.normal(centre, 0.5, len(row)).astype(numpy.float32)
            made.setdefault(name, Stream(values, "token"))
        filled.append(replace(row, streams=made))
    return filled


def with_made_fields(rows: list[Row], names: Sequence[str]) -> list[Row]:
    """The rows with made-up columns of the data, 0 or 1, as a tuner reads them."""
    for name in names:
        types = numpy.random.default_rng([*name.encode()]).integers(0, 2, len(rows)).astype(numpy.float32)
        made = {row.id: Stream(value, "row") for row, value in zip(rows, types, strict=True)}
        rows = [replace(row, streams={**row.streams, f"field:{name}": made[row.id]}) for row in rows]
    return rows
