"""Peak memory of each tuner on one random model: `python bench/tuner_memory.py`, one process per tuner.

Llama, 28 M parameters, float32; updates of 16 records of 256 tokens in two micro-batches. LoRA, s2ft and spiel train
about as many parameters, LoRA and s2ft on the same layers. `above_model_bytes` is the peak above the loaded model.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import result

from luthier import parts

TARGETS = ["down_proj", "o_proj"]
COUNT = 376_832  # trained by LoRA of rank 16 on TARGETS
TUNERS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "r": 16, "targets": TARGETS},
    "s2ft": {"kind": "s2ft", "targets": {"down_proj": 0.05, "o_proj": 0.05}},
    "s2ft, permuted": {"kind": "s2ft", "targets": {"down_proj": 0.05, "o_proj": 0.05}, "permute": True},
    "spiel": {"kind": "spiel", "count": COUNT, "every": 3, "window": 1},
    "spiel, candidates of a micro-batch": {
        "kind": "spiel",
        "count": COUNT,
        "every": 3,
        "window": 1,
        "candidates": "micro_batch",
    },
    "full": {"kind": "full"},
}
UPDATES, RECORDS, LENGTH = 4, 16, 256


def model() -> Any:
    """A random Llama of 8 layers and width 512."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=4096,
        tie_word_embeddings=True,
    )
    made: Any = LlamaForCausalLM(config)
    return made.float().eval()


def measure(name: str) -> dict[str, Any]:
    """Train a few updates in this process."""
    import numpy

    from luthier.engine import allocator, usage
    from luthier.engine.assemble import Parts, tuned_policy
    from luthier.engine.budget import Budget
    from luthier.engine.micro_batches import Batching
    from luthier.engine.source import Records
    from luthier.engine.trainer import Trainer
    from luthier.tuners.base import TunerInputs
    from luthier.types import Row, Stream

    draw = numpy.random.default_rng(0)
    weights = numpy.ones(LENGTH, dtype=numpy.float32)
    rows = [
        Row(f"{i}", draw.integers(0, 4096, LENGTH).astype(numpy.int32), {"weights": Stream(weights, "token")})
        for i in range(2 * RECORDS)
    ]
    module, objective, tuner = model(), parts.build("objective", "sft"), parts.build("tuner", TUNERS[name])
    loaded = usage.resident()
    allocator.tune_allocator()  # as every run does
    usage.reset_peak()
    chosen = Parts(objective, (tuner,), parts.build("optimizer", "adamw"), parts.build("schedule", "constant"))
    policy = tuned_policy(module, chosen, TunerInputs(0, rows))
    source = Records(rows, 0, Budget("updates", UPDATES))
    trainer = Trainer(policy, chosen, source, Batching(RECORDS, RECORDS * LENGTH // 2))
    trained = sum(p.numel() for p in trainer.masters.compute.values())
    trainer.train()
    return {"trained": trained, "peak_bytes": usage.peak(), "above_model_bytes": usage.peak() - loaded}


def main() -> None:
    """Measure every tuner in a process of its own and write the results."""
    found = {}
    for name in TUNERS:
        done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
        above = found[name]["above_model_bytes"] / 2**20
        print(f"{name:36} {found[name]['trained']:>12,} trained {above:8.0f} MiB above the model")
    result.write("tuner_memory", {"tuners": found})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
