"""Small random models of other families than Llama, from transformers' configurations."""

import torch

IDS = torch.arange(3, 20)[None]
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 61, "max_position_embeddings": 64,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 12, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "v_head_dim": 6, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "state_size": 4,
    "shared_expert_intermediate_size": 16, "intermediate_size_mlp": 48, "hidden_dropout": 0.0,
}  # fmt: skip
ZAMBA = {
    "num_hidden_layers": 4, "layers_block_type": None, "layer_types": ["mamba", "hybrid", "mamba", "hybrid"],
    "attention_hidden_size": 64, "attention_head_dim": 16, "mamba_dt_rank": 4, "n_mamba_heads": 2, "mamba_d_state": 4,
}  # fmt: skip


def family(kind, dtype=torch.float32, **options):
    """A causal model of this type in eval mode, its weights three times as large as at the usual start."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config_type = type(AutoConfig.for_model(kind))
    known = {key: number for key, number in SMALL.items() if hasattr(config_type(), key)}
    chosen = known | (ZAMBA if kind == "zamba" else {}) | options
    config = config_type(**{key: number for key, number in chosen.items() if number is not None})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(3)
    return model


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits.float()


def apart(first, second):
    """The largest difference of the logits of two models, or of logits."""
    first, second = (x if isinstance(x, torch.Tensor) else logits(x) for x in (first, second))
    return float((first - second).abs().max())


def moved(tuner, module, seed=1):
    """The masters after a random step of everything that the tuner trains."""
    generator = torch.Generator().manual_seed(seed)
    masters = {}
    with torch.no_grad():
        for name, weight in tuner.parameters(module):
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
            masters[name] = weight
    return masters
