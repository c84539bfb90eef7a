"""Tiny models and rows that parts are tried on: a model of each modality, and rows of every form of answers."""

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
COMMON_PROMPT = 5
"""Tokens of a prompt that rows share: batches share it only with answers of at most 4 times its length, here 20."""


@dataclass(frozen=True)
class TinyModel:
    """A modality's model `module(dtype, seed)`, its policy `policy(module)`, and rows `rows(count, seed)`."""

    module: Callable[[torch.dtype, int], nn.Module]
    policy: Callable[[nn.Module], Any]
    rows: Callable[[int, int], list[Row]]


def seeded(make: Callable[[], nn.Module], dtype: torch.dtype, seed: int) -> nn.Module:
    """A module in eval mode whose weights depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().to(dtype=dtype).eval()


def dual_encoder(module: nn.Module) -> EncoderPolicy:
    """The policy of a dual encoder whose pictures are digits, and whose captions are their labels."""
    return EncoderPolicy(module, {"image": "image", "label": "label"})


def latent_rows(rows: Sequence[Row]) -> list[Row]:
    """Digits as clean samples, their labels as conditions."""
    latents = []
    for row in rows:
        streams = {"latent": row.streams["image"], PREFIX + "label": row.streams["label"]}
        latents.append(replace(row, streams=streams))
    return latents


def _judged_rows(count: int, seed: int) -> list[Row]:
    """Clean samples, each with a level and a probability of being optimal, as in the rows of a rollout."""
    rows = []
    for index, row in enumerate(latent_rows(digit_rows(count, seed, CLASSES))):
        level = Stream(0.1 + 0.8 * index / count, "row")
        optimality = Stream(0.15 + 0.7 * (index * 5 % count) / count, "row")
        rows.append(replace(row, streams={**row.streams, "level": level, "optimality": optimality}))
    return rows


def tiny_model(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """A Llama with 2 layers, width 32 and tied embeddings; its weights depend on the seed alone."""
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
    """Rows of unequal length, 6 to 21 tokens: 1 to 4 prompt tokens of weight 0, then targets of weight 0.5 or 1.

    Args:
        targets: False sets the weight of every token to 0.
    """
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
    """Rows of preference pairs: two answers to one prompt, of unequal length."""
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
    """Rows of one answer each; every second answer, the first included, is labelled good."""
    labelled: list[Row] = []
    for index, row in enumerate(tiny_rows(count, seed, targets)):
        labelled += rows_of_record(row.id, [row], label=index % 2 == 0)
    return labelled


def with_common_prompts(rows: Sequence[Row]) -> list[Row]:
    """The rows with prompts of COMMON_PROMPT tokens that rows 0 and 1, 2 and 3, ... have in common."""
    changed: list[Row] = []
    for index, row in enumerate(rows):
        first = rows[index - index % 2]
        length = prompt_length(row)
        prompt = numpy.resize(first.ids[: prompt_length(first)], COMMON_PROMPT)
        streams = dict(row.streams)
        for name, stream in row.streams.items():
            if stream.axis == "token":
                zeros = numpy.zeros(COMMON_PROMPT, stream.values.dtype)
                streams[name] = replace(stream, values=numpy.concatenate([zeros, stream.values[length:]]))
        changed.append(replace(row, ids=numpy.concatenate([prompt, row.ids[length:]]), streams=streams))
    return changed


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
    """The rows with random numbers in the token streams that they lack, such as those of a rollout.

    Log-probabilities lie around those of a uniform distribution, other numbers around 0.
    """
    filled = []
    for index, row in enumerate(rows):
        streams = dict(row.streams)
        for name in names:
            draw = numpy.random.default_rng([index, *name.encode()])
            centre = -math.log(VOCABULARY) if "logprobs" in name else 0.0
            values = draw.normal(centre, 0.5, len(row)).astype(numpy.float32)
            streams.setdefault(name, Stream(values, "token"))
        filled.append(replace(row, streams=streams))
    return filled


def with_random_fields(rows: list[Row], names: Sequence[str]) -> list[Row]:
    """The rows with random columns of the data, 0 or 1, as row streams `field:<name>`."""
    for name in names:
        numbers = numpy.random.default_rng([*name.encode()]).integers(0, 2, len(rows)).astype(numpy.float32)
        by_id = {row.id: Stream(number, "row") for row, number in zip(rows, numbers, strict=True)}
        rows = [replace(row, streams={**row.streams, f"field:{name}": by_id[row.id]}) for row in rows]
    return rows
