"""Models are tried on a run's own rows: who sees the future is refused, and no layout is taken that changes a row."""

import numpy
import pytest
import torch
import transformers

from luthier.engine.layouts import choose_layout
from luthier.errors import ModelError
from luthier.models.policy import TokenPolicy
from luthier.types import Row, Stream

LLAMA = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA |= {"num_key_value_heads": 2, "vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BERT = {key: LLAMA[key] for key in LLAMA if key != "num_key_value_heads"} | {"max_position_embeddings": 64}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0 + i for i in range(8)]}
LONGROPE |= {"rope_theta": 10000.0, "original_max_position_embeddings": 16}


def heated(family, dtype=torch.float32, **more):
    """A random model whose weights are so large that attention, routing and positions matter."""
    usual = BERT if "bert" in family or family in ("roformer", "electra") else LLAMA
    config = transformers.AutoConfig.for_model(family, **{**usual, **more})
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.dim() > 1:
                weight.mul_(4.0)
    return TokenPolicy(module.to(dtype).eval())


def rows_of(*lengths, vocabulary=97):
    numbers, rows = numpy.random.default_rng(0), []
    for index, length in enumerate(lengths):
        ids = numbers.integers(3, vocabulary, length).astype(numpy.int32)
        weights = (numpy.arange(length) >= length // 2).astype(numpy.float32)
        rows.append(Row(f"r{index}", ids, {"weights": Stream(weights, "token")}))
    return rows


FUTURE = {
    "bert": {},
    "roberta": {},
    "electra": {"embedding_size": 64},
    "roformer": {"embedding_size": 64},
    "gemma3_text": {"head_dim": 16, "use_bidirectional_attention": True},
    "cpmant": {"dim_head": 16, "dim_ff": 96, "prompt_types": 4, "prompt_length": 2, "segment_types": 4},
    "xlnet": {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 96},
    "xlm": {"emb_dim": 64, "n_layers": 2, "n_heads": 4, "n_words": 97},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FUTURE)
def test_a_model_that_sees_later_tokens_is_refused(family, dtype):
    with pytest.raises(ModelError, match="sees the future"):
        choose_layout(heated(family, dtype, **FUTURE[family]), rows_of(20, 9, 5), "auto", None)
