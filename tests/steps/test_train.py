"""How a training is put together: each part once, and the parts of a training that is carried on."""

from collections import Counter

import torch

from luthier import parts
from luthier.modalities.open import open_workspace
from luthier.runs.run import Run
from luthier.steps.train import training
from support.runs import recipe, with_words


def test_each_part_is_built_once_and_a_carried_training_keeps_its_tuners(tmp_path, monkeypatch):
    settings = recipe(with_words(tmp_path), "train.select=max_loss", "train.objective=asft")
    workspace = open_workspace(settings, None)
    built, build = Counter(), parts.build

    def counting(slot, *spec):
        built[slot] += 1
        return build(slot, *spec)

    monkeypatch.setattr(parts, "build", counting)
    run = Run(settings, tmp_path / "run")
    first, _ = training(run, workspace, lambda event: None, lambda: False, span=(0.0, 0.5))
    assert built == dict.fromkeys(("objective", "tuner", "optimizer", "schedule", "selector"), 1)
    with torch.no_grad():
        for master in first.masters.master.values():
            master += 0.25
    second, _ = training(run, workspace, lambda event: None, lambda: False, first, (0.5, 1.0))
    assert all(one is other for one, other in zip(first.tuners, second.tuners, strict=True))
    assert second.policy is first.policy and second.parts.objective is not first.parts.objective
    assert all(torch.equal(master, second.masters.master[name]) for name, master in first.masters.master.items())
