"""How large should a micro-batch be? `python bench/micro.py` times full fine-tuning at several sizes and layouts.

SmolLM2-135M's architecture with random weights, 16 made-up records, two updates of 8 per arm, arms in turn.
Prints tokens per second of processor time (of all threads: other work on the machine hardly moves it) and the
peak memory of each arm's own process; writes results/micro.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import result

ARMS = [(256, "padded"), (512, "padded"), (1024, "padded"), (4096, "padded"), (512, "packed"), (2048, "packed")]


def child(tokens: int, layout: str) -> None:
    """One arm in this process; prints its figures as JSON."""
    import time

    import numpy
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from luthier import parts
    from luthier.engine import allocator, usage
    from luthier.engine.assemble import Parts
    from luthier.engine.budget import Budget
    from luthier.engine.micro_batches import Batching
    from luthier.engine.source import Records
    from luthier.engine.trainer import Trainer
    from luthier.models.loading.load import fast_bfloat16
    from luthier.models.policy import TokenPolicy
    from luthier.types import Row, Stream

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(dtype=torch.bfloat16 if fast_bfloat16() else torch.float32)
    draw = numpy.random.default_rng(0)
    rows = []
    for index in range(16):
        prompt = int(draw.integers(30, 90))
        length = prompt + int(draw.integers(60, 180))
        weights = numpy.ones(length, dtype=numpy.float32)
        weights[:prompt] = 0
        ids = draw.integers(0, 49152, length).astype(numpy.int32)
        rows.append(Row(f"{index}", ids, {"weights": Stream(weights, "token", 0.0)}))
    tuner = parts.build("tuner", "full")
    allocator.tune_allocator()  # as every run does
    usage.reset_peak()
    started = time.process_time()
    objective = parts.build("objective", "sft")
    chosen = Parts(objective, (tuner,), parts.build("optimizer", "adamw"), parts.build("schedule", "constant"))
    trainer = Trainer(
        policy=TokenPolicy(tuner.apply(model, {})),
        parts=chosen,
        source=Records(rows, 0, Budget("updates", 2)),
        batching=Batching(8, tokens, layout),  # pyright: ignore[reportArgumentType]
    )
    trainer.train()
    rate = trainer.position.tokens / (time.process_time() - started)
    print(json.dumps({"tokens_per_cpu_second": rate, "peak_bytes": usage.peak(), "dtype": str(model.dtype)}))


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reader.add_argument("--rounds", type=int, default=3)
    reader.add_argument("--output", type=Path)
    reader.add_argument("--child", nargs=2, metavar=("TOKENS", "LAYOUT"))
    options = reader.parse_args()
    if options.child:
        child(int(options.child[0]), options.child[1])
        return
    found: dict[str, list[dict]] = {}
    for _ in range(options.rounds):
        for tokens, layout in ARMS:
            command = [sys.executable, "-W", "ignore", __file__, "--child", str(tokens), layout]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found.setdefault(f"{tokens} {layout}", []).append(json.loads(out.splitlines()[-1]))
    table = {
        arm: {key: statistics.median(run[key] for run in runs) for key in ("tokens_per_cpu_second", "peak_bytes")}
        for arm, runs in found.items()
    }
    for arm, line in table.items():
        print(f"{arm:14} {line['tokens_per_cpu_second']:7.1f} tokens/CPU s   {line['peak_bytes'] / 1e9:.2f} GB")
    result.write("micro", {"arms": table, "rounds": found}, options.output)


if __name__ == "__main__":
    main()
