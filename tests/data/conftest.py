import json
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from luthier.data.prepare import prepare
from luthier.data.render import Renderer
from luthier.data.sources import load_records
from support import templates

SPECIAL = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>",
]  # fmt: skip
CORPUS = [
    "Question: what is 12 + 30? Answer: 42 The answer is 42.\n\n",
    "system user assistant model You are a helpful assistant. Hello, how are you? I am fine. Yes. No.\n",
    "Tom has 3 apples and buys 4 more. How many apples does Tom have? Tom has 7 apples.\n",
] * 4


TEMPLATES = templates.ALL


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>", *SPECIAL, *bytes_])
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def wrap(backend: Tokenizer, template: str | None = None, **special) -> PreTrainedTokenizerFast:
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", **special}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=SPECIAL[2:], **named)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def backends() -> dict[str, str]:
    return {"byte_level": byte_level().to_str(), "metaspace": metaspace().to_str()}


@pytest.fixture(scope="session")
def make_tokenizer(backends):
    """A small real tokenizer with BOS, by family and chat template: `make_tokenizer("chatml")`."""

    def make(template: str | None = "chatml", backend: str = "byte_level", **special):
        text = TEMPLATES.get(template, template) if template else None
        return wrap(Tokenizer.from_str(backends[backend]), text, **special)

    return make


@pytest.fixture
def write_rows(tmp_path):
    def _write(*rows, name="data.jsonl"):
        if name.endswith(".parquet"):
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), tmp_path / name)
        else:
            (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name

    return _write


@pytest.fixture
def load(write_rows, tmp_path):
    def _load(*rows, columns=None, name="data.jsonl"):
        return load_records({"path": write_rows(*rows, name=name), "columns": columns or {}}, tmp_path)

    return _load


@pytest.fixture
def report_of(write_rows, tmp_path, make_tokenizer):
    def _report(*rows, render="chat", reads=(), template="chatml", columns=None, test=None):
        source = {"path": write_rows(*rows), "columns": columns or {}}
        settings = SimpleNamespace(
            train=source, validation=None, test=test, split_seed=0, group_by=None, max_tokens=2000
        )
        settings.too_long, settings.deduplicate = "error", False
        return prepare(settings, Renderer(make_tokenizer(template), render), tmp_path, columns=reads).report

    return _report
