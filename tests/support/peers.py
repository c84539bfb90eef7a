"""Luthier beside a peer: the same weights and the same rows on both sides, and how far loss and gradients are apart.

Ours is computed in float64, so that what is seen is the peer's rounding and never ours. `make test-peers` prints it.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch

from luthier import parts
from luthier.conformance.base import apart
from luthier.conformance.tiny import tiny_model
from luthier.conformance.training import trainer
from luthier.data.batches import collate, group_by_record
from luthier.engine.trainer import Batching
from luthier.models.loading.load import load_tokenizer
from luthier.objectives.sum import reads_of
from luthier.recipe.settings import Model
from objectives.preference.test_pairs import with_reference

LOSS, GRADIENT = 1e-6, 1e-5
"""Relative errors allowed, gradients by tensor: TRL takes log-probabilities in float32 whatever the model's type."""


@dataclass
class Ours:
    """One update of ours: what it started from, its loss and meters, and the gradient of every parameter by name."""

    model: Any
    event: dict[str, Any]
    gradients: dict[str, torch.Tensor]


def ours(spec, rows, moved=True):
    """An update over all rows at once, from a model moved off its reference (or not)."""
    objective = parts.build("objective", spec)
    if "logprobs:initial" in reads_of(objective):
        rows = with_reference(rows, torch.float64)
    events = []
    batching = Batching(len(group_by_record(rows)), 10_000)
    run = trainer(objective, parts.build("tuner", "full"), rows, batching, disturb=moved, observe=events.append)
    model = copy.deepcopy(run.policy.module)
    before = {name: master.detach().clone() for name, master in run.masters.master.items()}
    run.train()
    return Ours(model, events[0], {name: before[name] - m.detach() for name, m in run.masters.master.items()})


def agree(what, found, loss, model):
    """Loss and gradients of both sides, theirs after a backward; says how far apart they are."""
    theirs = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    assert set(theirs) == set(found.gradients)
    of_loss = abs(float(loss.detach()) - found.event["loss"]) / abs(found.event["loss"])
    of_gradient = apart(found.gradients, theirs)
    print(f"{what}: loss {of_loss:.1e}, gradient {of_gradient:.1e}")
    assert max(float(one.norm()) for one in theirs.values()) > 1e-3
    assert of_loss <= LOSS and of_gradient <= GRADIENT


def trl_trainer(kind, config, model, folder, columns, options, **more):
    """A trainer of TRL's over this model; its data set is there because it must be, and is never read."""
    from datasets import Dataset

    rows = [dict.fromkeys(columns, "a b c") | ({"label": True} if "label" in columns else {}) for _ in range(4)]
    args = config(str(folder), use_cpu=True, bf16=False, report_to=[], **options)
    data, tokenizer = Dataset.from_list(rows), load_tokenizer(Model(path="nano"), folder)
    return kind(model=model, args=args, train_dataset=data, processing_class=tokenizer, **more)


def padded(rows):
    """Ids, mask of what is no padding, mask of targets: each [R,T]."""
    batch = collate(rows)
    return batch.ids, (batch.example_of >= 0).long(), ((batch.weights != 0) & (batch.position_of > 0)).long()


def labelled(ids, targets):
    """Ids where they are targets, and -100."""
    return torch.where(targets == 1, ids, -100)


def initial():
    """The reference: the model before it was moved."""
    return tiny_model().requires_grad_(False)
