"""dpo, ipo, simpo, orpo and kto against TRL's trainers: the same rows, policy and reference on both sides."""

import pytest
import torch

from luthier.conformance.tiny import tiny_labelled, tiny_pairs
from luthier.data.batches import mismatched
from support.peers import agree, initial, labelled, ours, padded, trl_trainer

pytestmark = pytest.mark.peers
PAIR, LABELLED = ("prompt", "chosen", "rejected"), ("prompt", "completion", "label")
PAIRS = {
    "dpo": ({"kind": "dpo", "beta": 0.3}, {"beta": 0.3}),
    "dpo, smoothed": (
        {"kind": "dpo", "loss": "robust", "label_smoothing": 0.1},
        {"loss_type": ["robust"], "label_smoothing": 0.1},
    ),
    "dpo, hinge": ({"kind": "dpo", "loss": "hinge"}, {"loss_type": ["hinge"]}),
    "ipo": ({"kind": "ipo"}, {"loss_type": ["ipo"]}),
}


def sides(pairs):
    return pairs[::2], pairs[1::2]


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_equal_trl(name, tmp_path):
    trl = pytest.importorskip("trl")
    spec, more = PAIRS[name]
    pairs = tiny_pairs()
    computed = ours(spec, pairs)
    options = {"disable_dropout": False, **more}
    peer = trl_trainer(trl.DPOTrainer, trl.DPOConfig, computed.model, tmp_path, PAIR, options, ref_model=initial())
    chosen, rejected = sides(pairs)
    ids, mask, targets = padded([*chosen, *rejected])
    inputs = {"input_ids": ids, "attention_mask": mask, "completion_mask": targets}
    loss = peer._compute_loss(peer.model.train(), inputs, False)
    loss.backward()
    agree(name, computed, loss, peer.model)
    assert computed.event["accuracy"] == pytest.approx(peer._metrics["train"]["rewards/accuracies"][0])
    if name == "dpo":
        assert computed.event["margin"] == pytest.approx(peer._metrics["train"]["rewards/margins"][0], rel=1e-5)


KTO = {
    "kto": ({"desirable_weight": 2.0, "beta": 0.3}, {"desirable_weight": 2.0, "beta": 0.3}),
    "kto without baseline": ({"baseline": "zero"}, {"loss_type": "apo_zero_unpaired"}),
}


@pytest.mark.parametrize("name", KTO)
def test_kto_equals_trl(name, tmp_path):
    trl = pytest.importorskip("trl")
    options, more = KTO[name]
    rows = tiny_labelled(seed=2)
    computed = ours({"kind": "kto", **options}, rows)
    more = {"disable_dropout": False, **more}
    peer = trl_trainer(trl.KTOTrainer, trl.KTOConfig, computed.model, tmp_path, LABELLED, more, ref_model=initial())
    ids, mask, targets = padded(rows)
    others = mismatched(rows, "0/1")
    names = ("KL_input_ids", "KL_attention_mask", "KL_completion_mask")
    inputs = {"input_ids": ids, "attention_mask": mask, "completion_mask": targets}
    inputs |= dict(zip(names, padded([others[row.id] for row in rows]), strict=True))
    inputs["label"] = torch.tensor([bool(row.streams["preferred"].values) for row in rows])
    if options.get("baseline") == "zero":
        inputs = {key: value for key, value in inputs.items() if key not in names}
    loss = peer._compute_loss(peer.model.train(), inputs, False)
    loss.backward()
    agree(name, computed, loss, peer.model)
    theirs = peer._metrics["train"]
    assert computed.event["kl"] == pytest.approx(theirs["kl"][0], abs=1e-5)
    assert computed.event["kl"] > 0.05 or options.get("baseline") == "zero"
    assert computed.event["good_reward"] == pytest.approx(theirs["rewards/chosen"][0], rel=1e-5)
    assert computed.event["bad_reward"] == pytest.approx(theirs["rewards/rejected"][0], rel=1e-5)


def pair_inputs(pairs):
    inputs = {}
    for name, rows in zip(("chosen", "rejected"), sides(pairs), strict=True):
        ids, mask, targets = padded(rows)
        inputs |= {f"{name}_input_ids": ids, f"{name}_attention_mask": mask, f"{name}_labels": labelled(ids, targets)}
    return inputs


def test_simpo_equals_trl(tmp_path):
    pytest.importorskip("trl")
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    computed = ours({"kind": "simpo", "gamma": 0.7}, tiny_pairs())
    options = {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.7, "beta": 2.0, "disable_dropout": False}
    peer = trl_trainer(CPOTrainer, CPOConfig, computed.model, tmp_path, PAIR, options)
    loss, _ = peer.get_batch_loss_metrics(peer.model.train(), pair_inputs(tiny_pairs()))
    loss.backward()
    agree("simpo", computed, loss, peer.model)


def test_orpo_equals_trl(tmp_path):
    """TRL counts the prompt's tokens into the likelihood: with prompts of one token there are none."""
    pytest.importorskip("trl")
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    pairs = [one_token_of_prompt(row) for row in tiny_pairs()]
    computed = ours({"kind": "orpo", "weight": 0.5}, pairs)
    options = {"beta": 0.5, "disable_dropout": False}
    peer = trl_trainer(ORPOTrainer, ORPOConfig, computed.model, tmp_path, PAIR, options)
    loss, _ = peer.get_batch_loss_metrics(peer.model.train(), pair_inputs(pairs))
    loss.backward()
    agree("orpo", computed, loss, peer.model)


def one_token_of_prompt(row):
    before = int((row.streams["weights"].values == 0).sum()) - 1
    weights = row.streams["weights"].__class__(row.streams["weights"].values[before:], "token")
    return row.__class__(row.id, row.ids[before:], {**row.streams, "weights": weights}, row.record)
