"""What does a method cost against sft? `python bench/method_cost.py [--objectives sft dft ...] [--tuners full lora]`

SmolLM2-135M's architecture with random weights, made-up records. Every cell (objective, tuner) is
a process of its own, cells in turn over several rounds. Prints processor time per update (of all threads: other work
on the machine hardly moves it; the first update of each process is not counted) and peak memory, as medians and as
ratios to sft under the same tuner; writes results/method_cost.json. A part is a name or a JSON block.
What is computed once before training (hidden states of a reference) counts with its share of EPOCHS epochs, a recipe's
default; `--asked` asks the reference at every update instead, as a budget of seconds or of less than an epoch does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import result

OBJECTIVES = ["sft", "dft", "asft", "otr", "ift", "lfu", '{"kind": "lfu", "auxiliary": "steering"}']
TUNERS = ["full", "lora"]
LAYERS, RECORDS, UPDATES, EPOCHS = 30, 2, 3, 2


def part(slot: str, text: str) -> Any:
    """A part from a name or a JSON block."""
    from luthier import parts

    return parts.build(slot, json.loads(text) if text.startswith("{") else text)


def made_up_rows(count: int) -> list[Any]:
    """Records of 90 to 270 tokens, of which 60 to 180 are targets."""
    import numpy

    from luthier.types import Row, Stream

    draw = numpy.random.default_rng(0)
    rows = []
    for index in range(count):
        prompt = int(draw.integers(30, 90))
        length = prompt + int(draw.integers(60, 180))
        weights = numpy.ones(length, dtype=numpy.float32)
        weights[:prompt] = 0
        ids = draw.integers(0, 49152, length).astype(numpy.int32)
        rows.append(Row(f"{index}", ids, {"weights": Stream(weights, "token", 0.0)}))
    return rows


def random_model(layers: int) -> Any:
    """SmolLM2-135M, or fewer layers of it, in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def states_of(model: Any, rows: list[Any], folder: str) -> tuple[Any, float]:
    """The model's hidden states at the rows in a file, and the processor time that they took."""
    import time

    from luthier.data.batches import collate
    from luthier.engine.hidden_cache import HiddenStateCache
    from luthier.models.policy import Reference, TokenPolicy

    reference = Reference(TokenPolicy(model))
    reference.hidden(collate(rows[:1]))  # the first forward of a process is not counted
    started = time.process_time()
    states = HiddenStateCache(Path(folder) / "states", rows, 576, next(model.parameters()).dtype)
    states.compute(reference, rows, 256, lambda done, total: None)
    return states, time.process_time() - started


def child(objective_text: str, tuner_text: str, layers: int, asked: bool) -> None:
    """One cell in this process; prints its figures as JSON."""
    import tempfile
    import time

    from luthier import parts
    from luthier.engine import allocator, usage
    from luthier.engine.assemble import Parts, tuned_policy
    from luthier.engine.budget import Budget
    from luthier.engine.micro_batches import Batching
    from luthier.engine.source import Records
    from luthier.engine.trainer import Trainer
    from luthier.objectives.base import TokenObjective
    from luthier.objectives.sum import reads_of
    from luthier.tuners.base import TunerInputs

    objective, tuner = part("objective", objective_text), part("tuner", tuner_text)
    rows = made_up_rows(RECORDS * UPDATES)
    allocator.tune_allocator()  # as every run does
    usage.reset_peak()
    folder = tempfile.TemporaryDirectory()
    model, states, once = random_model(layers), None, 0.0
    if isinstance(objective, TokenObjective) and reads_of(objective) and not asked:
        states, once = states_of(model, rows, folder.name)
    times = [time.process_time()]
    chosen = Parts(objective, (tuner,), parts.build("optimizer", "adamw"), parts.build("schedule", "constant"))
    trainer = Trainer(
        policy=tuned_policy(model, chosen, TunerInputs(0, rows), states=states),
        parts=chosen,
        source=Records(rows, 0, Budget("updates", UPDATES)),
        batching=Batching(RECORDS, 512, "padded"),
        observe=lambda event: times.append(time.process_time()),
    )
    trainer.train()
    folder.cleanup()
    spent = statistics.median(after - before for before, after in pairwise(times[1:]))
    share = once / UPDATES / EPOCHS
    figures = {"cpu_seconds_per_update": spent + share, "of_them_before": share, "peak_bytes": usage.peak()}
    print(json.dumps(figures))


def measured(objectives: list[str], tuners: list[str], rounds: int, more: list[str]) -> dict[str, dict[str, Any]]:
    """Medians over rounds of every cell, and ratios to the first objective under the same tuner."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for tuner in tuners:
            for objective in objectives:
                command = [sys.executable, "-W", "ignore", __file__, "--child", objective, tuner]
                out = subprocess.run([*command, *more], capture_output=True, text=True, check=True).stdout
                found.setdefault((tuner, objective), []).append(json.loads(out.splitlines()[-1]))
    table: dict[str, dict[str, Any]] = {tuner: {} for tuner in tuners}
    for (tuner, objective), runs in found.items():
        cell = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        base = table[tuner].get(objectives[0], cell)
        table[tuner][objective] = cell | {
            "time_ratio": cell["cpu_seconds_per_update"] / base["cpu_seconds_per_update"],
            "memory_ratio": cell["peak_bytes"] / base["peak_bytes"],
            "rounds": runs,
        }
    return table


def main() -> None:
    reader = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    reader.add_argument("--objectives", nargs="+", default=OBJECTIVES, help="the first is the yardstick")
    reader.add_argument("--tuners", nargs="+", default=TUNERS)
    reader.add_argument("--rounds", type=int, default=3)
    reader.add_argument("--layers", type=int, default=LAYERS)
    reader.add_argument("--asked", action="store_true", help="ask references at every update")
    reader.add_argument("--output", type=Path)
    reader.add_argument("--child", nargs=2, metavar=("OBJECTIVE", "TUNER"))
    options = reader.parse_args()
    if options.child:
        child(*options.child, options.layers, options.asked)
        return
    more = ["--layers", str(options.layers), *(["--asked"] if options.asked else [])]
    table = measured(options.objectives, options.tuners, options.rounds, more)
    for tuner, cells in table.items():
        for objective, cell in cells.items():
            print(
                f"{tuner:6} {objective:42} {cell['cpu_seconds_per_update']:6.2f} CPU s ({cell['time_ratio']:.2f})"
                f"   {cell['peak_bytes'] / 1e9:.2f} GB ({cell['memory_ratio']:.2f})"
            )
    setup = {
        "layers": options.layers,
        "records": RECORDS,
        "updates": UPDATES,
        "epochs": EPOCHS,
        "rounds": options.rounds,
    }
    setup |= {"rounds": options.rounds, "asked": options.asked, "precision": "float32"}
    result.write("method_cost", {"setup": setup, "cells": table}, options.output)


if __name__ == "__main__":
    main()
