"""Tiny random models of many families, whose weights are large enough that attention, caps and windows matter."""

import torch
import transformers

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "state_size": 8,
}
EXTRA = {
    "cohere2": {"sliding_window": 12},
    "camembert": {"is_decoder": True, "num_key_value_heads": None},
    "roformer": {"is_decoder": True, "embedding_size": 32, "max_position_embeddings": 128},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "rwkv": {"attention_hidden_size": 32},
    "openai-gpt": {"n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "recurrent_gemma": {"attention_window_size": 12, "lru_width": 32, "block_types": ("recurrent", "attention")},
    "minimax": {"layer_types": ["linear_attention", "full_attention"], "block_size": 8},
    "whisper": {"max_target_positions": 128},
    "doge": {"keep_window_size": 12},
    "mistral": {"sliding_window": 12},
    "phi3": {
        "original_max_position_embeddings": 24,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0, 5.0, 6.0, 7.0],
            "original_max_position_embeddings": 24,
        },
    },
}


def family(name, dtype=torch.float32, **more):
    """A model of this type, in eval mode."""
    torch.manual_seed(0)
    kind = transformers.CONFIG_MAPPING[name]
    more = EXTRA.get(name, {}) | more
    known = kind()
    config = kind(**{key: value for key, value in SIZES.items() if hasattr(known, key)} | more)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.35)
    return model.to(dtype).eval()
