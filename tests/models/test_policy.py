"""What the policy takes from a model: hidden states at the targets, whatever the layout."""

import pytest
import torch

from luthier import parts
from luthier.data.batches import collate
from luthier.errors import ModelError
from luthier.models.policy import Reference, TokenPolicy
from luthier.steps.conformance import tiny_model, tiny_rows


@pytest.fixture
def policy():
    return TokenPolicy(tiny_model())


def by_record(batch, values):
    rows, columns = batch.targets()
    return {
        (batch.records[batch.record_of[r, c]], int(batch.position_of[r, c])): value
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
    found = by_record(together, policy.hidden(together).detach())
    assert found.keys() == alone.keys()
    assert max(float((found[key] - alone[key]).abs().max()) for key in alone) < 1e-12


def test_head_over_hidden_is_the_models_own_logits(policy):
    batch = collate(tiny_rows())
    rows, columns = batch.targets()
    own = policy.module(input_ids=batch.ids, use_cache=False).logits[rows, columns - 1]
    assert torch.allclose(policy.head.logits(policy.hidden(batch)), own, rtol=1e-10)


def test_the_models_own_logits_are_never_computed(policy):
    seen = []
    policy.module.get_output_embeddings().register_forward_hook(lambda m, i, out: seen.append(out.shape))
    policy.hidden(collate(tiny_rows()))
    assert [shape[-2] for shape in seen] == [0]


def test_a_model_that_changes_its_logits_is_refused(policy):
    policy.verify_head()
    forward = policy.module.forward

    def doubled(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits * 2 + 1
        return out

    policy.module.forward = doubled
    with pytest.raises(ModelError, match="changes its logits"):
        policy.verify_head()


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
    policy.verify_head()
    batch = collate(tiny_rows())
    policy.head.sum(policy.hidden(batch), lambda s, z: z[:, 0]).backward()
    assert all(p.grad is not None for p in policy.module.parameters() if p.requires_grad)
