"""Builds nano before training.

One token per byte, so that every text can be encoded and no token is unknown; a vocabulary of 264 keeps the embedding
small. 4 layers of width 192 have 1.8 million parameters, 3.6 MB as bfloat16.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
VOCABULARY = 264
CONTEXT = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def untrained_nano(folder: Path, seed: int = 0) -> Path:
    """Write nano with random weights, its tokenizer and chat template into `folder`, and return it.

    Args:
        folder: created if missing; files of the same names are replaced.
        seed: of the weights; the global random state does not change.
    """
    import torch
    from transformers import LlamaForCausalLM

    from luthier.models.quiet import quiet

    quiet()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(nano_config())
    model.to(torch.bfloat16).save_pretrained(folder)
    nano_tokenizer().save_pretrained(folder)
    return folder


def nano_config() -> Any:
    """The architecture, as a transformers LlamaConfig."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIAL.index("<|end|>"),
        pad_token_id=SPECIAL.index("<|pad|>"),
    )


def nano_tokenizer() -> Any:
    """The byte tokenizer: special tokens first, then the 256 bytes in byte-level spelling."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
