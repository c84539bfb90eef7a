"""Tiny random models of nearly all causal types that transformers knows, for `bench/models.py`.

Every model has two to four layers of width 64 and the vocabulary of `nano`. Weights are scaled up after their
initialisation: at the usual scale attention, routing, caps and windows hardly change a tiny model's logits.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from luthier.models.loading.bundled import bundled_path

VOCABULARY, BOS, EOS, PAD = 264, 1, 259, 260
HEAT = 4.0

WIDTHS = "hidden_size n_embd d_model dim word_embed_proj_dim embedding_size embedding_dim"
INNER = "n_inner intermediate_size ffn_dim d_ff ffn_hidden_size encoder_ffn_dim decoder_ffn_dim dff d_inner dim_ff"
DEPTHS = "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers"
HEADS = "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"
LENGTHS = "max_position_embeddings n_positions n_ctx max_seq_len"
EXPERTS = "n_routed_experts num_experts num_local_experts moe_num_experts"
DROPOUTS = (
    "attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop dropout activation_dropout"
    " hidden_dropout_prob attention_probs_dropout_prob residual_dropout"
)

SMALL: dict[str, Any] = {
    **dict.fromkeys(WIDTHS.split(), 64),
    **dict.fromkeys(INNER.split(), 96),
    **dict.fromkeys(DEPTHS.split(), 2),
    **dict.fromkeys(HEADS.split(), 4),
    **dict.fromkeys(LENGTHS.split(), 512),
    **dict.fromkeys(EXPERTS.split(), 4),
    **dict.fromkeys(DROPOUTS.split(), 0.0),
    "vocab_size": VOCABULARY,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "d_kv": 16,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": -1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "state_size": 16,
    "time_step_rank": 8,
    "ssm_state_size": 16,
    "n_groups": 1,
    "mamba_d_state": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_heads": 4,
    "linear_head_dim": 16,
}
"""Sizes by the names that configs of transformers give them; a config takes those that it has."""

FOUR: dict[str, Any] = {"num_hidden_layers": 4}
HYBRID = {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], **FOUR}
GEMMA4 = {
    "layer_types": ["sliding_attention", "full_attention"],
    "head_dim": 16,
    "global_head_dim": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_kv_shared_layers": 0,
}
NOT_SET = object()

# What a type needs beyond SMALL to be built so small, with all its kinds of layers.
SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]},
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
        }
    },
    "cpmant": {"prompt_types": 4, "prompt_length": 4, "segment_types": 4, "dim_head": 16},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "exaone4": {"sliding_window_pattern": 2, **FOUR},
    "exaone_moe": {"sliding_window_pattern": 2, **FOUR},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "intermediate_size": [96] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 264,
        "laurel_rank": 8,
    },
    "gemma4_text": {**GEMMA4, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 264},
    "gemma4_unified_text": GEMMA4,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        **FOUR,
    },
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": FOUR,
    "longcat_flash": {"num_key_value_heads": 4, "qk_head_dim": 24, "head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "moe", "mlp"], **FOUR},
    "prophetnet": {
        "num_hidden_layers": NOT_SET,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4,
    },
    "qwen3_5_moe_text": FOUR,
    "qwen3_5_text": FOUR,
    "qwen3_next": FOUR,
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 8},
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "local"],
        "attention_head_size": 16,
        "feed_forward_size": 96,
        "num_hidden_layers": NOT_SET,
        "local_attn_chunk_length": 8,
    },
    "roc_bert": {"pronunciation_vocab_size": 300, "shape_vocab_size": 300},
    "xlnet": {"max_position_embeddings": NOT_SET},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": HYBRID,
    "zamba2": HYBRID,
    "zaya": {"num_experts_per_tok": 1},
}

LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 24,
    "factor": 4.0,
}

# Variants: the type that each belongs to, and what is set otherwise.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-encoder": ("bert", {"is_decoder": False}),
    "electra-encoder": ("electra", {"is_decoder": False}),
    "roberta-encoder": ("roberta", {"is_decoder": False}),
    "roformer-encoder": ("roformer", {"is_decoder": False}),
    "deepseek_v32-short": ("deepseek_v32", {"index_topk": 4}),
    "doge-window": ("doge", {"keep_window_size": 4}),
    "falcon-alibi": ("falcon", {"alibi": True}),
    "falcon-new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gemma3-bidirectional": ("gemma3_text", {"use_bidirectional_attention": True}),
    "gpt2-dropout": ("gpt2", {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}),
    "llama-bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "mistral-window": ("mistral", {"sliding_window": 8}),
    "mpt-scale": ("mpt", {"logit_scale": "inv_sqrt_d_model"}),
    "olmo-clip": ("olmo", {"clip_qkv": 0.5}),
    "phi3-longrope": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 24}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "seed_oss-dropout": ("seed_oss", {"attention_dropout": 0.1, "residual_dropout": 0.1}),
}

TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
TOO_LARGE = {
    "aria_text", "blt", "dots3_note", "emu3", "fuyu", "gemma3", "gemma3n", "gemma4", "gemma4_unified", "git",
    "got_ocr2", "llama4", "mllama", "moshi", "moss_transcribe_diarize", "musicgen", "musicgen_melody",
    "phi4_multimodal", "qwen3_5", "qwen3_5_moe", "qwen4_exp",
}  # fmt: skip
"""Types of several modalities, whose inner configs this table does not shrink."""

DRAFTS = {"gemma4_assistant", "gemma4_unified_assistant"}
"""Models that read another model's states; transformers 5.23 refuses every config of theirs."""


def names() -> list[str]:
    """Types and variants that `build` knows, in alphabetical order."""
    return sorted({*TYPES, *VARIANTS} - TOO_LARGE - DRAFTS)


def config_of(name: str) -> Any:
    """The small config of a type or variant."""
    model_type, changes = VARIANTS.get(name, (name, {}))
    kind = CONFIG_MAPPING[model_type]
    try:
        usual: Any = kind()
    except Exception:  # a few classes have no config of defaults alone
        usual = kind
    sizes = {}
    for key, size in SMALL.items():
        # Properties are computed from other keys and cannot be set.
        if _has(usual, key) and not isinstance(getattr(kind, key, None), property):
            sizes[key] = size
    if "kv_lora_rank" in sizes:  # MLA: as many heads for keys, and a head size of its own
        sizes |= {"num_key_value_heads": 4}
        sizes.pop("head_dim", None)
    if getattr(usual, "sliding_window", None):
        sizes["sliding_window"] = 8
    if getattr(usual, "bos_token_id", None) is not None:
        sizes["bos_token_id"] = BOS
    sizes |= SPECIAL.get(model_type, {})
    sizes |= changes
    config = kind(**{key: size for key, size in sizes.items() if size is not NOT_SET})
    if hasattr(config, "is_decoder") and not getattr(config, "is_encoder_decoder", False):
        config.is_decoder = changes.get("is_decoder", True)
    return config


def _has(config: Any, key: str) -> bool:
    try:
        return hasattr(config, key)
    except Exception:  # a size that may differ between layers is read from each layer's config
        return False


def build(name: str) -> Any:
    """The model of a type or variant, with random weights in float32."""
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(config_of(name)).float().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() >= 2 and float(parameter.std()) < 0.06:
                parameter.mul_(HEAT)
    return module


def has_dropout(folder: str) -> bool:
    """Whether the config of a model folder asks for dropout, so that two trainings draw different numbers."""
    config = transformers.AutoConfig.from_pretrained(folder)
    return any(getattr(config, name, 0.0) for name in DROPOUTS.split())


def save(name: str, folder: Path) -> None:
    """Write the model and the tokenizer of `nano` as a model folder."""
    build(name).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(bundled_path("nano") / file, folder)
