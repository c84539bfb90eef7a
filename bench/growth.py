"""How time and memory of an update grow with what it is made of. What the design claims, and this measures:

    with               seconds of an update      peak memory above weights, gradients and moments
    batch              linear (1)                near 0: a micro-batch is as large as ever
    length             0 at constant positions   near 0 at constant positions, until attention's squares show
    vocabulary         at most 1                 well below 1: logits exist in chunks; what grows is the gradient of the
                                                 embedding, of the size of its weights
    vocabulary_batch   at most 1 of its product  well below 1
    records            0                         near 0: records wait as token ids
    set-up             linear in records: reading, rendering, finding duplicates, splitting

    python bench/growth.py                    # some minutes on one core; writes results/growth.json
    python bench/growth.py --tiny             # fewer points, to see that it runs

A Llama of random weights (2 layers, width 64), full fine-tuning, records of equal length whose second half is targets,
micro-batches of 2,048 positions. Each point is a process of its own; seconds are those of the processor, the median of
the updates after the first. The number beside an axis is the slope of a line through the logarithms: 1 is linear.
Memory counts from before the model is made, less 16 bytes for each weight (asft: 20, its frozen reference).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import result

BASE = {"batch": 16, "length": 256, "vocabulary": 16_384, "records": 64}
AXES: dict[str, list[dict[str, int]]] = {
    "batch": [{"batch": n, "records": 8 * n} for n in (8, 16, 32, 64)],
    "length": [{"length": n, "batch": 4096 // n} for n in (64, 128, 256, 512, 1024)],
    "vocabulary": [{"vocabulary": n} for n in (16_384, 32_768, 65_536, 131_072)],
    "vocabulary_batch": [{"vocabulary": 16_384 * n, "batch": 8 * n, "records": 64 * n} for n in (1, 2, 4)],
    "records": [{"records": n} for n in (64, 640, 6400)],
}
SETUP = [500, 1000, 2000, 4000]
MICRO, WIDTH, UPDATES = 2048, 64, 4
BYTES = {"sft": 16, "asft": 20}


def child(objective_name: str, point: dict[str, int]) -> dict[str, float]:
    """One point in this process."""
    import numpy
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from luthier import parts
    from luthier.engine import allocator, usage
    from luthier.engine.assemble import Parts, tuned_policy
    from luthier.engine.budget import Budget
    from luthier.engine.micro_batches import Batching
    from luthier.engine.source import Records
    from luthier.engine.trainer import Trainer
    from luthier.tuners.base import TunerInputs
    from luthier.types import Row, Stream

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=point["vocabulary"],
        tie_word_embeddings=True,
    )
    draw, length = numpy.random.default_rng(0), point["length"]
    weights = (numpy.arange(length) >= length // 2).astype(numpy.float32)
    rows = [
        Row(
            f"{i}",
            draw.integers(0, point["vocabulary"], length).astype(numpy.int32),
            {"weights": Stream(weights, "token")},
        )
        for i in range(point["records"])
    ]
    allocator.tune_allocator()  # as every run does
    usage.reset_peak()
    before = usage.resident()
    tuner, objective = parts.build("tuner", "full"), parts.build("objective", objective_name)
    times = [time.process_time()]
    chosen = Parts(objective, (tuner,), parts.build("optimizer", "adamw"), parts.build("schedule", "constant"))
    trainer = Trainer(
        policy=tuned_policy(LlamaForCausalLM(config), chosen, TunerInputs(0, rows)),
        parts=chosen,
        source=Records(rows, 0, Budget("updates", UPDATES)),
        batching=Batching(point["batch"], MICRO, "padded"),
        observe=lambda event: times.append(time.process_time()),
    )
    trainer.train()
    state = BYTES[objective_name] * sum(p.numel() for p in trainer.policy.module.parameters())
    spent = [after - earlier for earlier, after in pairwise(times[1:])]
    return {"seconds": statistics.median(spent), "memory_bytes": usage.peak() - before - state}


def set_up(records: int) -> dict[str, float]:
    """Seconds from a JSONL file of so many records to rows, in this process."""
    import random

    from transformers import AutoTokenizer

    from luthier.data.prepare import prepare
    from luthier.data.render import Renderer
    from luthier.models.loading.load import resolve_model
    from luthier.recipe import load_recipe

    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(2000)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.jsonl"
        lines = [{"prompt": " ".join(draw.choices(words, k=20)), "completion": " ".join(draw.choices(words, k=20))}]
        lines += [{key: " ".join(draw.choices(words, k=20)) for key in lines[0]} for _ in range(records - 1)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        recipe = load_recipe({"name": "growth", "model": "nano", "data": {"train": str(path)}})
        renderer = Renderer(AutoTokenizer.from_pretrained(resolve_model("nano", Path.cwd())))
        started = time.process_time()
        prepare(recipe.settings.data, renderer, recipe.base, None)
        return {"seconds": time.process_time() - started}


def measured(*words: str) -> dict[str, float]:
    """What a process of its own found."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def slope(sizes: list[float], values: list[float]) -> float:
    """Of the least-squares line through the logarithms."""
    across, along = [math.log(size) for size in sizes], [math.log(max(value, 1e-9)) for value in values]
    middle, level = statistics.fmean(across), statistics.fmean(along)
    spread = sum((x - middle) ** 2 for x in across)
    return sum((x - middle) * (y - level) for x, y in zip(across, along, strict=True)) / spread


def axis(objective: str, name: str, points: list[dict[str, int]]) -> dict[str, Any]:
    """All points of one axis, and how they grow."""
    found = [{**point, **measured(objective, json.dumps(BASE | point))} for point in points]
    sizes = [
        float(point["vocabulary"] * point["batch"] if name == "vocabulary_batch" else point[name]) for point in points
    ]
    slopes = {key: slope(sizes, [one[key] for one in found]) for key in ("seconds", "memory_bytes")}
    print(
        f"{objective:5} {name:17} {slopes['seconds']:8.2f} {slopes['memory_bytes']:8.2f}   " + shown(sizes, found),
        flush=True,
    )
    return {"points": found, "sizes": sizes, "exponents": slopes}


def shown(sizes: list[float], found: list[dict[str, Any]]) -> str:
    cells = (
        f"{s:g}: {one['seconds']:.2f} s {one['memory_bytes'] / 2**20:.0f} MiB"
        for s, one in zip(sizes, found, strict=True)
    )
    return ", ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--objectives", nargs="+", choices=BYTES, default=list(BYTES))
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--tiny", action="store_true", help="the first two points of every axis")
    parser.add_argument("--child", nargs=2, metavar=("OBJECTIVE", "POINT"))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.child:
        name, point = options.child
        print(json.dumps(set_up(int(point)) if name == "set-up" else child(name, json.loads(point))))
        return
    most = 2 if options.tiny else None
    print(f"{'':5} {'with':17} {'seconds':>8} {'memory':>8}   exponents, then the points")
    found: dict[str, Any] = {}
    for objective in options.objectives:
        found[objective] = {name: axis(objective, name, AXES[name][:most]) for name in options.axes}
    counts = SETUP[:most]
    points = [measured("set-up", str(count))["seconds"] for count in counts]
    grown = slope([float(count) for count in counts], points)
    each = [1000 * seconds / count for seconds, count in zip(points, counts, strict=True)]
    print(f"set-up {grown:.2f}: " + ", ".join(f"{n}: {ms:.2f} ms a record" for n, ms in zip(counts, each, strict=True)))
    setup = {"records": counts, "seconds": points, "milliseconds_per_record": each, "exponent": grown}
    given = {"base": BASE, "micro": MICRO, "width": WIDTH, "updates": UPDATES}
    result.write("growth", {"setting": given, "updates": found, "set_up": setup}, options.output)


if __name__ == "__main__":
    main()
