"""A training by hand: recipe, rows, policy, and a loop of 20 lines in plain torch.

`luthier run` computes the same losses; it adds resuming, bfloat16, several processes, selection and rollouts.
"""

from pathlib import Path

import torch

from luthier.data.batches import Ordered, collate, micro_batches
from luthier.engine.assemble import Parts, tuned_policy
from luthier.modalities.open import open_workspace
from luthier.objectives.base import total_of
from luthier.recipe.load import load_recipe
from luthier.tuners.base import TunerInputs
from luthier.update import Update

CHANGES = {
    "extends": "small.yaml",
    # In float32 the optimiser can move the model's own weights; bfloat16 would need float32 copies of them.
    "train": {"objective": "dft", "precision": "float32", "schedule": {"kind": "constant"}},
    "budget": {"updates": 4},
}


def train(recipe, updates):
    """Train by the recipe's objective, tuner and optimiser; the loss of each update."""
    settings = recipe.settings
    workspace = open_workspace(recipe, cache=None)
    parts = Parts.of(recipe)  # the objective, tuners and optimiser that the recipe names
    rows = workspace.prepared.train
    # The tuner decides which parameters have a gradient. `policy.hidden` runs the model up to its head.
    policy = tuned_policy(workspace.loaded.module, parts, TunerInputs(settings.seed, rows))
    policy.module.train()
    trained = [parameter for parameter in policy.module.parameters() if parameter.requires_grad]
    stepper = parts.optimizer.make(trained)
    size, order, losses = settings.train.batch.records, Ordered(rows, settings.seed), []

    for index in range(updates):
        records = [order.at(position) for position in range(index * size, (index + 1) * size)]
        drawn = [row for record in records for row in record]  # a preference pair has two rows
        batches = [collate(micro) for micro in micro_batches(drawn, tokens=64, layout="padded")]
        # Losses are sums, divided by the count of the whole update: the gradient does not depend on the cut.
        counts = {"targets": sum(parts.objective.units(batch)["targets"] for batch in batches)}
        update = Update(index=index + 1, seed=settings.seed, batches=batches, counts=counts)
        loss = 0.0
        for batch in batches:
            share = total_of(parts.objective.terms(policy, batch, update), counts)
            share.backward()  # at once, so that the activations of one micro-batch exist at a time
            loss += share.item()
        torch.nn.utils.clip_grad_norm_(trained, parts.optimizer.clip)
        stepper.step()
        stepper.zero_grad()
        losses.append(loss)
    return losses


if __name__ == "__main__":
    losses = train(load_recipe(CHANGES, base=Path(__file__).parent), updates=4)
    print("loss " + ", ".join(f"{loss:.3f}" for loss in losses))
