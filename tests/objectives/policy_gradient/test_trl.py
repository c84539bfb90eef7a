"""Loss and gradient against trl on the same ids, mask, advantages and log-probabilities (where trl is installed)."""

from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace

import numpy
import pytest
import torch

from luthier import parts
from luthier.conformance.tiny import tiny_model, tiny_rows, with_streams
from luthier.conformance.training import trained
from luthier.data.batches import collate
from luthier.engine.trainer import Batching
from luthier.types import Stream
from support.peers import Ours, agree

pytestmark = pytest.mark.peers
STREAMS = ("old_logprobs", "logprobs:initial")
GRPO = {
    "grpo": ({"norm": "sequence"}, {"loss_type": "grpo"}),
    "dapo": ({"clip_high": 0.28}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dr_grpo": ({"norm": "constant", "max_length": 20}, {"loss_type": "dr_grpo"}),
    "gspo": ({"ratio": "sequence", "norm": "sequence"}, {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
    "gspo over tokens": ({"ratio": "sequence"}, {"loss_type": "dapo", "importance_sampling_level": "sequence"}),
    "cispo": (
        {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 0.5},
        {"loss_type": "cispo", "epsilon_high": 1.5},
    ),
    "kl": ({"kl_coefficient": 0.3}, {"loss_type": "dapo", "beta": 0.3}),
}


def rows():
    answers = []
    for index, row in enumerate(with_streams(tiny_rows(), STREAMS)):
        row.streams["weights"].values[:] = row.streams["weights"].values != 0
        advantages = numpy.full(len(row), (-1.0) ** index * (1 + index) / 4, dtype=numpy.float32)
        answers.append(type(row)(row.id, row.ids, {**row.streams, "advantages": Stream(advantages, "token")}))
    return answers


class Peer:
    """What trl's loss looks up on its trainer; log-probabilities come from our own model by full logits."""

    top_entropy_quantile, aux_loss_enabled, off_policy_mask_threshold = 1.0, False, None
    beta, epsilon_low, epsilon_high, importance_sampling_level = 0.0, 0.2, 0.2, "token"
    use_vllm, use_adaptive_entropy, _entropy_bonus_enabled = False, False, False
    current_gradient_accumulation_steps, max_completion_length, model_kwarg_keys = 1, 20, ()
    args = SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1)
    accelerator = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)

    def __init__(self, batch, **more):
        self.batch, self.model = batch, tiny_model().train()
        self._metrics = {"train": defaultdict(list)}
        self.compute_loss_context_manager = nullcontext
        for name, value in more.items():
            setattr(self, name, value)

    def _get_per_token_logps_and_entropies(self, model, *_, **__):
        batch = self.batch
        log_p = torch.log_softmax(model(input_ids=batch.ids).logits.double(), -1)
        chosen = log_p[:, :-1].gather(-1, batch.ids[:, 1:, None])[..., 0]
        return chosen, torch.zeros_like(chosen), None

    def inputs(self):
        batch = self.batch
        tokens = {name: batch.streams[name].values[:, 1:].double() for name in (*STREAMS, "weights")}
        first = torch.tensor([[float(row.streams["advantages"].values[0])] for row in rows()], dtype=torch.float64)
        return {
            "prompt_ids": batch.ids[:, :1],
            "prompt_mask": torch.ones_like(batch.ids[:, :1]),
            "completion_ids": batch.ids[:, 1:],
            "completion_mask": tokens["weights"],
            "advantages": first[:, 0],
            "old_per_token_logps": tokens["old_logprobs"],
            "old_logps": (tokens["old_logprobs"] * tokens["weights"]).sum(-1),
            "ref_per_token_logps": tokens["logprobs:initial"],
            "num_items_in_batch": tokens["weights"].sum(),
        }


def compare(name, trainer_class, spec, more):
    peer = Peer(collate(rows()), **more)
    theirs = trainer_class._compute_loss(peer, peer.model, peer.inputs())
    theirs.backward()
    events = []
    objective = parts.build("objective", spec)
    whole = Batching(8, 10_000)
    change = trained(objective, parts.build("tuner", "full"), whole, rows=rows(), disturb=False, observe=events.append)
    found = Ours(peer.model, events[0], {parameter: -moved for parameter, moved in change.items()})
    agree(name, found, theirs, peer.model)
    return events[0], peer._metrics["train"]


@pytest.mark.parametrize("name", GRPO)
def test_grpo_equals_trl(name):
    trl = pytest.importorskip("trl")
    options, more = GRPO[name]
    meters, theirs = compare(name, trl.GRPOTrainer, {"kind": "grpo", **options}, more)
    if "clip_ratio/region_mean" in theirs and "ratio" not in options:
        assert meters["clip_fraction"] == pytest.approx(theirs["clip_ratio/region_mean"][0], abs=1e-6)
    if "kl" in theirs:
        assert meters["kl"] == pytest.approx(theirs["kl"][0], rel=1e-5)


def test_rloo_equals_trl():
    trl = pytest.importorskip("trl")
    options, more = {"clip_low": 0.9, "clip_high": 9.0}, {"epsilon_low": 0.9, "epsilon_high": 9.0}
    compare("rloo", trl.RLOOTrainer, {"kind": "rloo", **options}, more)
