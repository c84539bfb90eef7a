"""A tiny random Llama over ASCII, and the tokenizer and renderer that go with it."""

import numpy
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.recipe.settings import GenerateSettings
from luthier.types import Record, Row, Stream

END = 3


class Letters:
    """One token per ASCII character."""

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": ([1] if add_special_tokens else []) + [ord(letter) for letter in text]}

    def decode(self, ids, skip_special_tokens=False, **_):
        return "".join(chr(one) for one in ids if one > 3 or not skip_special_tokens)


class PlainRenderer:
    """prompt, completion, end of turn."""

    end_ids = frozenset({END})

    def prompt_text(self, record):
        return record.fields["prompt"]

    def prompt(self, record):
        return Letters()(record.fields["prompt"])["input_ids"]

    def reference(self, record):
        return record.fields["completion"]

    def render(self, record):
        prompt = self.prompt(record)
        answer = [ord(letter) for letter in record.fields["completion"]] + [END]
        weights = numpy.array([0.0] * len(prompt) + [1.0] * len(answer), dtype="float32")
        if record.fields.get("masked"):
            weights[:] = 0
        return Row(record.id, numpy.array(prompt + answer, dtype="int32"), {"weights": Stream(weights, "token")})


@pytest.fixture
def letters():
    return Letters()


@pytest.fixture
def renderer():
    return PlainRenderer()


@pytest.fixture(scope="session")
def module():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.3,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def settings():
    return GenerateSettings(max_new_tokens=6)


def record(name, prompt="ask", completion="answer", **fields):
    return Record(
        name, "prompt_completion", {"prompt": prompt, "completion": completion, **fields}, f"data.jsonl:{name}"
    )


@pytest.fixture(name="record")
def record_fixture():
    return record
