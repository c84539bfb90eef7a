"""sft and dft against TRL's SFTTrainer, and sft against the loss of transformers itself: the same rows and weights."""

import pytest

from luthier.conformance.tiny import tiny_rows
from support.peers import agree, labelled, ours, padded, trl_trainer

pytestmark = pytest.mark.peers


def rows():
    """Records whose targets weigh the same."""
    found = tiny_rows()
    for row in found:
        row.streams["weights"].values[:] = row.streams["weights"].values != 0
    return found


@pytest.mark.parametrize("loss", ["nll", "dft"])
def test_equals_trl(loss, tmp_path):
    trl = pytest.importorskip("trl")
    name = {"nll": "sft", "dft": "dft"}[loss]
    computed = ours(name, rows())
    peer = trl_trainer(trl.SFTTrainer, trl.SFTConfig, computed.model, tmp_path, ("text",), {"loss_type": loss})
    ids, mask, targets = padded(rows())
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labelled(ids, targets)}
    theirs = peer.compute_loss(peer.model.train(), inputs, num_items_in_batch=targets.sum())
    theirs.backward()
    agree(f"{name}, TRL", computed, theirs, peer.model)


def test_sft_equals_transformers():
    computed = ours("sft", rows())
    ids, mask, targets = padded(rows())
    theirs = computed.model(input_ids=ids, attention_mask=mask, labels=labelled(ids, targets)).loss
    theirs.backward()
    agree("sft, transformers", computed, theirs, computed.model)
