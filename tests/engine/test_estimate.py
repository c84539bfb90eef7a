"""The estimate counts what it says."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from luthier import parts
from luthier.conformance.tiny import tiny_model, tiny_pairs, tiny_rows
from luthier.engine import estimate as estimates
from luthier.models.kernels.gradients import accumulating_in_place
from luthier.models.kernels.head import Head, target_logprob
from luthier.tuners.base import TunerInputs


def tuned(kind, dtype=torch.float32):
    model = tiny_model(dtype).requires_grad_(False)
    tuner = parts.build("tuner", kind)
    return tuner.apply(model, tuner.plan(model, TunerInputs()))


def estimate(module, tokens=100, **more):
    return estimates.estimate(module, tokens, **({"process": 0, "several": False, "checkpointing": False} | more))


def test_full_fine_tuning_in_float32_takes_four_copies():
    module = tuned("full")
    weights = 4 * sum(p.numel() for p in module.parameters())
    predicted = estimate(module)
    assert (predicted.weights, predicted.gradients, predicted.optimizer) == (weights, weights, 2 * weights)


def test_bfloat16_adds_masters():
    module = tuned("full", torch.bfloat16)
    count = sum(p.numel() for p in module.parameters())
    assert estimate(module).optimizer == 12 * count
    assert estimate(module).gradients == 2 * count
    assert estimate(module, several=True).gradients == 4 * count


def test_lora_trains_little_and_a_frozen_copy_costs_the_weights_again():
    module = tuned("lora")
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert estimate(module).optimizer == 8 * trained
    assert estimate(module, frozen=estimates.weight_bytes(module)).weights == 2 * estimate(module).weights


def test_grows_with_tokens_and_shrinks_with_checkpointing():
    module = tuned("full")
    assert estimate(module, 200).activations == 2 * estimate(module, 100).activations
    assert estimate(module, checkpointing=True).activations < estimate(module).activations


def test_works_without_weights():
    with torch.device("meta"):
        module = tuned("full")
    assert estimate(module).weights == estimate(tuned("full")).weights


def test_micro_batches():
    rows = tiny_rows()
    longest = max(len(row) for row in rows)
    assert estimates.largest_micro_batch(rows, 4, 10_000) == 4 * longest
    assert estimates.largest_micro_batch(rows, 4, 50) == 50
    assert estimates.largest_micro_batch(rows, 4, 1) == longest
    pairs = tiny_pairs()
    widest = 2 * max(len(row) for row in pairs)
    assert estimates.largest_micro_batch(pairs, 4, 10_000) == 4 * widest
    assert estimates.largest_micro_batch(pairs, 4, 1) == widest
    assert estimates.several_micro_batches(rows, 4, 50) and not estimates.several_micro_batches(rows, 4, 10_000)


def test_families_that_name_their_widths_otherwise():
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
        "opt": {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
        "mamba": {"hidden_size": 32, "num_hidden_layers": 2},
    }
    for family, size in sizes.items():
        config = AutoConfig.for_model(family, vocab_size=61, bos_token_id=1, eos_token_id=2, **size)
        with torch.device("meta"):
            module = AutoModelForCausalLM.from_config(config).requires_grad_(True)
        assert estimate(module, 200).activations == 2 * estimate(module, 100).activations > 0


class Alive(TorchDispatchMode):
    """The most bytes of tensors made within it that were alive at once."""

    def __init__(self, *before):
        super().__init__()
        self.bytes = self.most = 0
        self.counted = weakref.WeakSet([tensor.untyped_storage() for tensor in before])

    def __torch_dispatch__(self, function, types, args=(), named=None):
        output = function(*args, **(named or {}))
        for tensor in (leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage not in self.counted and storage.nbytes() >= 2**10:
                self.counted.add(storage)
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self.leave, storage.nbytes())
        self.most = max(self.most, self.bytes)
        return output

    def leave(self, size):
        self.bytes -= size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positions", [40, 2000])
@pytest.mark.parametrize("way", ["sum", "map"])
def test_the_heads_share_is_what_it_takes(way, positions, dtype):
    """SmolLM2-135M's vocabulary; few positions keep their gradients, many the weight's gradient."""
    output = nn.Linear(64, 49152, bias=False).to(dtype)
    hidden = torch.randn(positions, 64).to(dtype).requires_grad_()
    targets = torch.randint(0, 49152, (positions,))
    module = SimpleNamespace(get_output_embeddings=lambda: output)
    output.weight.grad = torch.zeros_like(output.weight)  # that of an earlier micro-batch
    with Alive(output.weight, output.weight.grad) as alive, accumulating_in_place():
        getattr(Head(output), way)(hidden, lambda s, z: -target_logprob(z, targets[s])).sum().backward()
    estimate = estimates._head_bytes(module, positions, dtype.itemsize, full=True)
    assert 0.6 * estimate < alive.most < estimate
