"""What does choosing cost? `python bench/select_cost.py` times an update with and without a selector.

A Llama of random weights (8 layers, width 384, vocabulary 16,384), 16 made-up candidates per update, four updates
per arm, arms in turn, each in a process of its own. Prints milliseconds of processor time per *candidate*
(of all threads: other work on the machine hardly moves it) and writes results/select_cost.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import result

ARMS = [(tuner, selector) for tuner in ("full", "lora") for selector in ("none", "random", "max_loss", "uds")]
VOCABULARY, CANDIDATES, UPDATES = 16_384, 16, 4


def child(tuner_name: str, selector_name: str) -> None:
    """One arm in this process; prints its figures as JSON."""
    import time

    import numpy
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from luthier import parts
    from luthier.engine.assemble import Parts, tuned_policy
    from luthier.engine.budget import Budget
    from luthier.engine.micro_batches import Batching
    from luthier.engine.source import Records
    from luthier.engine.trainer import Trainer
    from luthier.tuners.base import TunerInputs
    from luthier.types import Row, Stream

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=3,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
    )
    draw = numpy.random.default_rng(0)
    rows = []
    for index in range(CANDIDATES * UPDATES):
        prompt = int(draw.integers(20, 60))
        length = prompt + int(draw.integers(40, 120))
        weights = numpy.ones(length, dtype=numpy.float32)
        weights[:prompt] = 0
        ids = draw.integers(0, VOCABULARY, length).astype(numpy.int32)
        rows.append(Row(f"{index}", ids, {"weights": Stream(weights, "token", 0.0)}))
    tuner, objective = parts.build("tuner", tuner_name), parts.build("objective", "sft")
    selector = None if selector_name == "none" else parts.build("selector", selector_name)
    chosen = Parts(
        objective, (tuner,), parts.build("optimizer", "adamw"), parts.build("schedule", "constant"), selector
    )
    trainer = Trainer(
        policy=tuned_policy(LlamaForCausalLM(config), chosen, TunerInputs(0, rows)),
        parts=chosen,
        source=Records(rows, 0, Budget("updates", UPDATES)),
        batching=Batching(CANDIDATES, 512, "padded"),
    )
    started = time.process_time()
    trainer.train()
    seconds = time.process_time() - started
    print(json.dumps({"milliseconds": 1000 * seconds / trainer.position.records, **trainer.position.to_json()}))


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reader.add_argument("--rounds", type=int, default=3)
    reader.add_argument("--output", type=Path)
    reader.add_argument("--child", nargs=2, metavar=("TUNER", "SELECTOR"))
    options = reader.parse_args()
    if options.child:
        child(*options.child)
        return
    seen: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for arm in ARMS:
            command = [sys.executable, __file__, "--child", *arm]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            seen.setdefault(" ".join(arm), []).append(json.loads(out.splitlines()[-1])["milliseconds"])
    table = {arm: {"median": statistics.median(values), "all": values} for arm, values in seen.items()}
    for arm, found in table.items():
        whole = table[f"{arm.split()[0]} none"]["median"]
        print(f"{arm:15} {found['median']:8.1f} ms per candidate   {found['median'] / whole:5.2f} of plain training")
    found = {"cpu_milliseconds_per_candidate": table, "keep": 0.5, "rounds": options.rounds}
    result.write("select_cost", found, options.output)


if __name__ == "__main__":
    main()
