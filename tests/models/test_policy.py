"""What the policy takes from a model: hidden states at the targets, whatever the layout."""

import pytest
import torch

from luthier import parts
from luthier.conformance.tiny import tiny_model, tiny_rows, with_common_prompts
from luthier.data.batches import collate, micro_batches
from luthier.engine.layouts import choose_layout
from luthier.errors import ModelError
from luthier.models import checks
from luthier.models.policy import Reference, TokenPolicy


@pytest.fixture
def policy():
    return TokenPolicy(tiny_model())


def by_record(batch, values):
    rows, columns = batch.targets()
    return {
        (batch.examples[batch.example_of[r, c]], int(batch.position_of[r, c])): value
        for r, c, value in zip(rows.tolist(), columns.tolist(), values, strict=True)
    }


@pytest.mark.parametrize("layout, side", [("padded", "right"), ("padded", "left"), ("packed", "right")])
def test_every_layout_gives_the_hidden_states_of_the_record_alone(policy, layout, side):
    rows = tiny_rows()
    alone = {}
    for row in rows:
        batch = collate([row])
        alone |= by_record(batch, policy.hidden(batch).detach())
    together = collate(rows, layout, side=side)
    together_states = by_record(together, policy.hidden(together).detach())
    assert together_states.keys() == alone.keys()
    assert max(float((together_states[key] - alone[key]).abs().max()) for key in alone) < 1e-12


def test_head_over_hidden_is_the_models_own_logits(policy):
    batch = collate(tiny_rows())
    rows, columns = batch.targets()
    own = policy.module(input_ids=batch.ids, use_cache=False).logits[rows, columns - 1]
    assert torch.allclose(policy.head.logits(policy.hidden(batch)), own, rtol=1e-10)


def test_the_models_own_logits_are_never_computed(policy):
    shapes = []
    policy.module.get_output_embeddings().register_forward_hook(lambda m, i, out: shapes.append(out.shape))
    policy.hidden(collate(tiny_rows()))
    assert [shape[-2] for shape in shapes] == [0]


def test_a_model_that_changes_its_logits_is_refused(policy):
    checks.verify_head(policy)
    forward = policy.module.forward

    def doubled(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits * 2 + 1
        return out

    policy.module.forward = doubled
    with pytest.raises(ModelError, match="changes its logits"):
        checks.verify_head(policy)


def test_known_scales_are_read_from_the_config(policy):
    policy.module.config.logits_scaling = 4.0
    policy.module.config.final_logit_softcapping = 30.0
    assert (policy.head.scale, policy.head.softcap) == (0.25, 30.0)


def test_reference_inside_disabled_lora_is_the_model_before(policy):
    batch = collate(tiny_rows())
    before = policy.hidden(batch).detach()
    tuner = parts.build("tuner", {"kind": "lora", "dropout": 0.5})
    tuned = TokenPolicy(tuner.apply(policy.module, {"seed": 0}))
    with torch.no_grad():
        for name, p in tuned.module.named_parameters():
            if "lora_" in name:
                p += 0.1
    tuned.module.train()
    reference = Reference(tuned, lambda: tuner.disabled(tuned.module))
    hidden = reference.hidden(batch)
    assert torch.equal(hidden, before) and not hidden.requires_grad
    assert tuned.module.training
    assert not torch.allclose(tuned.hidden(batch), before)
    assert any(p.requires_grad for p in tuned.module.parameters())


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")
def test_head_includes_an_adapter_on_the_output_embedding():
    model = tiny_model()
    tuner = parts.build("tuner", {"kind": "lora", "targets": ["lm_head"]})
    policy = TokenPolicy(tuner.apply(model, {"seed": 0}))
    with torch.no_grad():
        for name, p in policy.module.named_parameters():
            if "lora_B" in name:
                p += 0.3
    checks.verify_head(policy)
    batch = collate(tiny_rows())
    policy.head.sum(policy.hidden(batch), lambda s, z: z[:, 0]).backward()
    assert all(p.grad is not None for p in policy.module.parameters() if p.requires_grad)


def random_model(family, **more):
    import transformers

    names = {"gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}}
    usual = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    special = {"vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(family, **{**names.get(family, usual), **special, **more})
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).double().eval()


FAMILIES = {
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 5},
    "gemma3_text": {"head_dim": 8, "sliding_window": 5},
    "granite": {"logits_scaling": 4.0},
    "cohere": {},
    "gpt2": {},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_give_the_same_hidden_states_in_every_layout(family):
    policy = TokenPolicy(random_model(family, **FAMILIES[family]))
    checks.verify_head(policy)
    rows = tiny_rows(4)
    assert choose_layout(policy, rows, "packed", None) == "packed"
    alone = {}
    with torch.no_grad():
        for row in rows:
            alone |= by_record(collate([row]), policy.hidden(collate([row])))
        for batch in (collate(rows), collate(rows, side="left"), collate(rows, "packed")):
            together_states = by_record(batch, policy.hidden(batch))
            assert max(float((together_states[key] - alone[key]).abs().max()) for key in alone) < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_families_share_a_prompt_or_are_refused(family):
    policy = TokenPolicy(random_model(family, **FAMILIES[family]))
    rows = with_common_prompts(tiny_rows(6))
    if "sliding_window" in FAMILIES[family]:
        with pytest.raises(ModelError, match="one prompt for several answers"):
            choose_layout(policy, rows, "shared", None)
        return
    assert choose_layout(policy, rows, "shared", None) == "shared"
    (micro,) = micro_batches(rows, 1000, "shared")
    assert any(row.shared for row in micro)
    shared, apiece = collate(micro, "shared"), collate(micro)
    with torch.no_grad():
        shared_states, own_states = by_record(shared, policy.hidden(shared)), by_record(apiece, policy.hidden(apiece))
    assert shared_states.keys() == own_states.keys()
    assert max(float((shared_states[key] - own_states[key]).abs().max()) for key in shared_states) < 1e-12


@pytest.mark.parametrize(
    "family, more",
    [("lfm2", {"layer_types": ["conv", "full_attention"]}), ("mamba", {"state_size": 4}), ("bloom", {"n_head": 4})],
)
def test_a_model_whose_answers_would_see_each_other_cannot_share_a_prompt(family, more):
    policy = TokenPolicy(random_model(family, **more))
    assert choose_layout(policy, with_common_prompts(tiny_rows(6)), "auto", None) == "padded"


@pytest.mark.parametrize("family", FAMILIES)
def test_families_read_embeddings_and_show_their_layers(family):
    policy = TokenPolicy(random_model(family, **FAMILIES[family]))
    checks.verify_embeddings(policy)
    batch = collate(tiny_rows(3), side="left")
    with policy.layer_outputs([0, 1]) as outputs:
        hidden = policy.hidden(batch, policy.embed(batch.ids))
    assert torch.allclose(hidden, policy.hidden(batch), atol=1e-10)
    # What transformers calls hidden states are the layers' inputs, and at the end the norm's output.
    states = policy.module(
        input_ids=batch.ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_of,
        output_hidden_states=True,
        use_cache=False,
    ).hidden_states
    real = batch.example_of >= 0
    assert len(policy.layers) == 2 and torch.allclose(outputs[0][real], states[1][real], atol=1e-10)
    assert outputs[1].shape == states[2].shape and not torch.allclose(outputs[1][real], states[2][real], atol=1e-3)


def test_layers_of_forwards_without_gradient_are_not_collected(policy):
    batch = collate(tiny_rows(3))
    with policy.layer_outputs([1]) as outputs:
        Reference(policy).hidden(batch)
        assert not outputs
        policy.hidden(batch)
    assert list(outputs) == [1] and outputs[1].requires_grad
    with policy.layer_outputs([0]) as again:
        pass
    assert not again


@pytest.mark.parametrize(
    "family, more",
    [
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    ],
)
def test_a_model_in_which_packed_records_see_each_other_is_refused(family, more):
    policy = TokenPolicy(random_model(family, **more))
    checks.verify_head(policy)
    with pytest.raises(ModelError, match="see each other"):
        choose_layout(policy, tiny_rows(4), "packed", None)


def test_reading_leaves_each_submodule_in_its_mode(policy):
    policy.module.train()
    policy.module.model.norm.eval()
    with pytest.raises(ZeroDivisionError):
        Reference(policy, lambda: 1 / 0).hidden(collate(tiny_rows()))
    assert policy.module.training and not policy.module.model.norm.training


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")
@pytest.mark.parametrize("targets, scopes", [(["q_proj"], 0), (["lm_head"], 3)])
def test_a_reference_enters_its_scope_for_a_chunk_only_where_the_head_is_tuned(targets, scopes):
    tuner = parts.build("tuner", {"kind": "lora", "targets": targets})
    model = tiny_model().requires_grad_(False)
    hidden = torch.randn(5, 32, dtype=torch.float64)
    before = model.get_output_embeddings()(hidden)
    policy = TokenPolicy(tuner.apply(model, {"seed": 0}))
    with torch.no_grad():
        for name, p in policy.module.named_parameters():
            if "lora_B" in name:
                p += 0.3
    entered = []
    reference = Reference(policy, lambda: entered.append(1) or tuner.disabled(policy.module))
    for _ in range(3):
        assert torch.equal(reference.logits(hidden), before)
    assert len(entered) == scopes
