"""A tokenizer for a chat template that comes without a model: bytes, and the control tokens that its text names."""

from __future__ import annotations

import re
from typing import Any

CONTROL = re.compile(
    r"<\|[^|<>\s'\"{}]{1,40}\|?>|<[^|<>\s'\"{}]{1,40}\|>|<｜[^｜<>\s'\"{}]{1,40}｜>|</?[A-Za-z_][\w:-]{0,40}>|\[/?[A-Z_]{2,40}\]"
)


def tokenizer_for(template: str) -> Any:
    """A fast tokenizer with this chat template: one token a byte, and one for each control token in the template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    control = sorted(set(CONTROL.findall(template)) - {"<s>", "</s>"})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>", extra_special_tokens=control
    )
    tokenizer.chat_template = template
    return tokenizer
