"""sft: the numbers of the card, and plain transformers cross-entropy."""

import torch

from luthier import parts
from luthier.conformance.tiny import tiny_model, tiny_rows
from luthier.conformance.training import GradientDescent, trainer
from luthier.data.batches import collate
from luthier.engine.trainer import Batching
from luthier.objectives.base import Update
from support.oracle import gradient_of, view_of


def test_card():
    loss, gradient = gradient_of(parts.build("objective", "sft"))
    assert abs(loss - 1.440190) < 1e-6
    assert torch.allclose(gradient, torch.tensor([0.643914, -0.763117, 0.087144, 0.032059]).double(), atol=1e-6)


def test_logits_at_other_positions_do_not_enter():
    view = view_of(parts.build("objective", "sft"))
    assert view.logprob.shape == (1,)


def test_equals_transformers_cross_entropy():
    rows = tiny_rows()
    batch = collate(rows)
    for row in rows:
        row.streams["weights"].values[:] = row.streams["weights"].values != 0
    batch = collate(rows)
    model = tiny_model()
    labels = torch.where(batch.weights != 0, batch.ids, -100)
    labels[:, 0] = -100
    mask = (batch.example_of >= 0).long()
    outputs = model(input_ids=batch.ids, attention_mask=mask, labels=labels)
    wanted = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert torch.allclose(outputs.loss.double(), wanted, rtol=1e-6)  # transformers computes it in float32
    wanted.backward()
    events = []
    run = trainer(
        parts.build("objective", "sft"),
        parts.build("tuner", "full"),
        rows,
        Batching(8, 50),
        disturb=False,
        observe=events.append,
        optimizer=GradientDescent(),
    )
    before = {name: p.detach().clone() for name, p in run.masters.master.items()}
    run.train()
    assert abs(events[0]["loss"] - float(wanted.detach())) < 1e-12
    assert abs(events[0]["nll"] - float(wanted.detach())) < 1e-12
    for name, p in model.named_parameters():
        assert torch.allclose(before[name] - run.masters.master[name].detach(), p.grad, rtol=1e-9, atol=1e-12)


def test_units_are_counted_from_the_batch():
    batch = collate(tiny_rows())
    units = parts.build("objective", "sft").units(batch)
    assert units["targets"] == sum(row.targets for row in tiny_rows())
    assert units["records"] == 8 and units["weights"] < units["targets"]
    assert Update(1, 0).counts == {}
