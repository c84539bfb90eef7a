"""dft: the numbers of the card; the undetached weight would fail here."""

import pytest
import torch

from luthier import parts
from luthier.objectives.base import Update
from oracle import gradient_of, view_of

GRADIENT = torch.tensor([0.152532, -0.180769, 0.020643, 0.007594]).double()


def test_card():
    loss, gradient = gradient_of(parts.build("objective", "dft"))
    assert abs(loss - 0.341156) < 1e-6
    assert torch.allclose(gradient, GRADIENT, atol=1e-6)


def test_gradient_is_that_of_minus_the_probability():
    view = view_of(None)
    (wanted,) = torch.autograd.grad(-view.logprob.exp().sum(), view.logits)
    assert torch.allclose(gradient_of(parts.build("objective", "dft"))[1], wanted[0], atol=1e-12)


def test_power_zero_is_sft_and_powers_differ():
    sft = gradient_of(parts.build("objective", "sft"))
    zero = gradient_of(parts.build("objective", {"kind": "dft", "prob_power": 0.0}))
    half = gradient_of(parts.build("objective", {"kind": "dft", "prob_power": 0.5}))
    assert zero[0] == pytest.approx(sft[0]) and torch.allclose(zero[1], sft[1])
    assert half[0] == pytest.approx(1.440190 * 0.236883**0.5, abs=1e-5)


def test_reports_the_mean_weight():
    update = Update(1, 0)
    gradient_of(parts.build("objective", "dft"), update=update)
    assert update.meters["mean_weight"][1] == pytest.approx(0.236883, abs=1e-6)


def test_equals_trl(tmp_path):
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from luthier.data.batches import collate
    from luthier.engine.trainer import Batching
    from luthier.models.load import load_tokenizer
    from luthier.recipe.settings import Model
    from luthier.steps.conformance import tiny_model, tiny_rows, trained

    rows = tiny_rows()
    for row in rows:
        row.streams["weights"].values[:] = row.streams["weights"].values != 0
    batch = collate(rows)
    labels = torch.where(batch.weights != 0, batch.ids, -100)
    labels[:, 0] = -100
    model = tiny_model(torch.float32)
    options = SFTConfig(str(tmp_path), loss_type="dft", use_cpu=True, bf16=False, report_to=[])
    data = Dataset.from_list([{"input_ids": row.ids.tolist()} for row in rows])
    tokenizer = load_tokenizer(Model(path="nano"), tmp_path)
    peer = SFTTrainer(model=model, args=options, train_dataset=data, processing_class=tokenizer)
    inputs = {"input_ids": batch.ids, "attention_mask": (batch.record_of >= 0).long(), "labels": labels}
    count = (labels[:, 1:] != -100).sum()
    theirs = peer.compute_loss(peer.model.train(), inputs, num_items_in_batch=count)
    theirs.backward()
    events = []
    objective, tuner = parts.build("objective", "dft"), parts.build("tuner", "full")
    options = {"rows": rows, "dtype": torch.float32, "disturb": False, "observe": events.append}
    ours = trained(objective, tuner, Batching(8, 10_000), **options)
    assert events[0]["loss"] == pytest.approx(float(theirs.detach()), rel=1e-5)
    for name, parameter in peer.model.named_parameters():
        assert torch.allclose(-ours[name], parameter.grad, rtol=1e-4, atol=1e-6)
