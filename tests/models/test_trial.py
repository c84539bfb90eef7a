"""Models are tried on a run's own rows: who sees the future is refused, and no layout is taken that changes a row."""

from dataclasses import replace

import numpy
import pytest
import torch
import transformers

from luthier.engine.layouts import choose_layout
from luthier.engine.score import score
from luthier.errors import ModelError
from luthier.models.checks import model_errors
from luthier.models.config import context_of
from luthier.models.policy import TokenPolicy
from luthier.models.trial import RowTrial, verify_model
from luthier.steps.train import refuse_untrainable
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


MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}
MLA = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
MLA |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32}
MLA |= {"index_topk": 8, "index_n_heads": 2, "index_head_dim": 16, "first_k_dense_replace": 1, "num_key_value_heads": 4}
LONG = {"rope_parameters": LONGROPE, "max_position_embeddings": 256, "original_max_position_embeddings": 16}
DECODER = {"is_decoder": True, "pad_token_id": 1}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4}
TAKEN = [
    ("llama", {}, "shared", "packed"),
    ("gpt2", GPT2, "shared", "packed"),
    ("mixtral", MIXTURE, "shared", "packed"),
    ("mistral", {"sliding_window": 8}, "padded", "packed"),
    ("mistral", {"sliding_window": 64}, "shared", "packed"),
    ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}, "shared", None),
    ("mamba", {"state_size": 4}, "padded", None),
    ("bloom", {"n_layer": 2, "n_head": 4}, "padded", None),
    ("camembert", DECODER, "padded", None),
    ("roberta", DECODER, "padded", None),
    ("data2vec-text", DECODER, "padded", None),
    ("phi3", LONG, "even", None),
    ("deepseek_v32", MLA, "even", None),
    ("doge", {"keep_window_size": 8}, "even", None),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FUTURE)
def test_a_model_that_sees_later_tokens_is_refused(family, dtype):
    with pytest.raises(ModelError, match="sees the future"):
        verify_model(heated(family, dtype, **FUTURE[family]), rows_of(20, 9, 5))


def test_a_weak_look_at_later_tokens_is_noticed_in_bfloat16():
    policy = heated("bert", torch.bfloat16)
    with torch.no_grad():
        for weight in policy.module.parameters():
            weight.mul_(0.25)
    with pytest.raises(ModelError, match="sees the future"):
        verify_model(policy, rows_of(20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "more", "auto", "packed"), TAKEN)
def test_a_layout_is_taken_that_keeps_the_states_of_the_row_alone(family, more, auto, packed, dtype):
    policy, rows = heated(family, dtype, **more), rows_of(40, 30, 24, 22, 9, 5)
    verify_model(policy, rows)
    assert choose_layout(policy, rows, "auto", None) == auto
    if packed:
        assert choose_layout(policy, rows, "packed", None) == packed
    else:
        with pytest.raises(ModelError, match="packed into one row"):
            choose_layout(policy, rows, "packed", None)
    if auto == "even":
        with pytest.raises(ModelError, match="padded to a longer one"):
            choose_layout(policy, rows, "padded", None)
    states = losses(policy, rows, auto, 500), losses(policy, rows, auto, 40)
    for row in rows:
        alone = own_losses(policy, row)
        tolerance = 2e-4 if dtype == torch.float32 else 0.2
        assert all(abs(taken[row.id] - alone) <= tolerance * max(1.0, alone) for taken in states)


def losses(policy, rows, layout, tokens):
    """The mean loss of each row's targets in forwards of this many positions."""
    column = score(policy, rows, ["logprobs"], tokens, layout)["logprobs"]
    return {row.id: -float(column[row.id].sum()) / row.targets for row in rows}


def own_losses(policy, row):
    """The same by transformers alone, in float32."""
    ids = torch.as_tensor(row.ids).long()[None]
    with torch.no_grad():
        logits = policy.module(input_ids=ids, use_cache=False).logits.float()
    nll = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")
    return float(nll[torch.as_tensor(row.streams["weights"].values[1:]) != 0].mean())


def test_rows_on_one_side_of_a_switch_between_lengths_are_padded_and_packed():
    policy = heated("phi3", **LONG)
    for rows in (rows_of(40, 30, 24, 18), rows_of(12, 9, 5)):
        assert choose_layout(policy, rows, "auto", None) == "shared"
        assert choose_layout(policy, rows, "packed", None) == "packed"


def test_pairs_on_both_sides_of_a_switch_are_refused():
    rows = [replace(row, record="pair") for row in rows_of(40, 9)]
    with pytest.raises(ModelError, match="rows of record pair have several lengths"):
        choose_layout(heated("phi3", **LONG), rows, "auto", None)


def test_a_trial_leaves_no_hook_no_mode_and_no_gradient():
    policy = heated("opt", ffn_dim=96, word_embed_proj_dim=64)
    policy.module.train()
    policy.module.model.decoder.layers[0].eval()
    modes = [layer.training for layer in policy.module.modules()]
    trial = RowTrial(policy)
    (row,) = rows_of(20)
    broken = replace(row, ids=numpy.full(20, 5000, numpy.int32))
    assert not trial.padded([broken, broken]) and "IndexError" in trial.reason
    assert trial.padded([row, row])
    assert [layer.training for layer in policy.module.modules()] == modes
    assert not any(layer._forward_pre_hooks for layer in policy.module.modules())
    assert all(p.grad is None for p in policy.module.parameters())


def reformer():
    size = {"hidden_size": 32, "attention_head_size": 16, "feed_forward_size": 48, "num_attention_heads": 2}
    size |= {"attn_layers": ["local", "local"], "axial_pos_embds": False, "local_attn_chunk_length": 8}
    config = transformers.ReformerConfig(**size, vocab_size=97, is_decoder=True, max_position_embeddings=64)
    torch.manual_seed(0)
    return TokenPolicy(transformers.ReformerModelWithLMHead(config).eval())


def test_a_model_whose_training_mode_is_stricter_is_refused():
    policy = reformer()
    refuse_untrainable(policy, rows_of(8, 16), compared=False)
    with pytest.raises(ModelError, match="reads these rows, but not in training mode: ValueError"):
        refuse_untrainable(policy, rows_of(8, 19), compared=False)
    assert not any(module.training for module in policy.module.modules())


def test_weights_that_no_gradient_reaches_are_refused():
    """Reversible layers give none to weights within them where nothing before them is trained, as under LoRA."""
    policy = reformer()
    refuse_untrainable(policy, rows_of(8), compared=True)
    for name, weight in policy.module.named_parameters():
        weight.requires_grad_(".attention." in name)
    with pytest.raises(ModelError, match="No gradient reaches the weights"):
        refuse_untrainable(policy, rows_of(8), compared=True)


def test_a_head_that_is_trained_alone_is_not_refused():
    policy = reformer()
    policy.module.requires_grad_(False)
    refuse_untrainable(policy, rows_of(8), compared=True)
    policy.output.requires_grad_(True)
    refuse_untrainable(policy, rows_of(8), compared=True)


def test_a_row_that_the_model_cannot_read_is_refused_in_words():
    with pytest.raises(ModelError, match="cannot read a row of 80 tokens"):
        choose_layout(heated("bert", is_decoder=True), rows_of(80), "auto", None)


def test_a_model_that_cannot_be_copied_to_float32_is_judged_in_its_own_type():
    policy, rows = heated("gpt2", torch.bfloat16, **GPT2), rows_of(40, 9)
    type(policy.module).__deepcopy__ = lambda self, memo: 1 / 0
    try:
        assert choose_layout(policy, rows, "auto", None) == "shared"
    finally:
        del type(policy.module).__deepcopy__


@pytest.mark.parametrize("flag", [{"output_attentions": True}, {"output_hidden_states": True}])
def test_outputs_that_the_config_asks_for_do_not_hide_the_states(flag):
    rows = rows_of(40, 9)
    expected = losses(heated("llama"), rows, "padded", 100)
    policy = heated("llama", **flag, attn_implementation="eager")
    verify_model(policy, rows)
    assert choose_layout(policy, rows, "auto", None) == "shared"
    assert losses(policy, rows, "padded", 100) == pytest.approx(expected, rel=1e-4)


def test_a_word_as_scale_of_the_logits_is_no_scale():
    mpt = {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 32, "logit_scale": "inv_sqrt_d_model"}
    policy = heated("mpt", **mpt)
    verify_model(policy, rows_of(20, 9))
    assert policy.head.scale == 1.0 and context_of(policy.module) == 32


def test_the_context_is_that_of_the_text_decoder():
    text = {**LLAMA, "max_position_embeddings": 77, "head_dim": 16}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.AutoConfig.for_model("gemma3", text_config=text, vision_config=vision)
    assert context_of(config) == 77
    xlnet = transformers.AutoConfig.for_model("xlnet")
    assert context_of(xlnet) is None


def test_a_wide_soft_cap_under_another_name_is_part_of_the_head():
    griffin = {"lru_width": 64, "block_types": ["recurrent", "attention"], "attention_window_size": 8, "head_dim": 16}
    policy = heated("recurrent_gemma", **griffin, logits_soft_cap=30.0)
    assert policy.head.softcap == 30.0
    verify_model(policy, rows_of(20, 9))
    policy.module.config.final_logit_softcapping = 33.0  # not the one that the model applies
    with pytest.raises(ModelError, match="changes its logits"):
        verify_model(policy, rows_of(20, 9))


def test_an_error_of_the_models_own_code_is_said_and_any_other_passes():
    class Picky(torch.nn.Module):
        def forward(self, ids):
            raise ValueError("length 77 has to be a multiple of 8\nmore")

    words = "Picky cannot be trained on these rows: ValueError: length 77 has"
    with pytest.raises(ModelError, match=words), model_errors(Picky()):
        Picky()(None)
    with pytest.raises(ValueError, match="mine"), model_errors(torch.nn.Linear(2, 2)):
        raise ValueError("mine")
    with pytest.raises(RuntimeError, match="shapes"), model_errors(torch.nn.Linear(2, 2)):
        torch.nn.Linear(2, 2)(torch.zeros(1, 3))
    with pytest.raises(MemoryError), model_errors(Picky()):
        raise MemoryError
