"""What `luthier compare` saves: N methods in one comparison, beside N times `luthier run` and `luthier eval` by hand.

    python bench/compare_saving.py                     # some minutes on one core; writes results/compare_saving.json
    python bench/compare_saving.py --methods dpo ipo simpo

`nano`, one seed, generated records written to files. By hand each method is a `luthier run`, which trains and
evaluates, and a `luthier eval` of the model as it was, on the same records. The comparison evaluates that model once,
renders the data once, reads references once for all methods that need the same, and adds tables and reports. Both
take turns. Seconds are given as they passed and as the processor spent them (of all processes: other work on the
machine hardly moves them). `phases` adds up what the runs recorded of themselves; what is left is starting
processes, importing, and reports.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import result

from luthier import parts

PAIRED = {"dpo", "ipo", "simpo", "orpo"}
NEW = 24


def write_data(folder: Path, options: argparse.Namespace) -> None:
    """train.jsonl and test.jsonl of generated records, as pairs where the methods read pairs."""
    paired = PAIRED & set(options.methods)
    for split, count in (("train", options.records), ("test", options.test)):
        spec: dict[str, Any] = {"kind": "strings", "count": count, "split": split}
        made = parts.build("dataset", {"kind": "pairs", "of": spec} if paired else spec).records()
        lines = [json.dumps(dict(record.fields)) + "\n" for record in made]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def recipe(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "name": "saving",
        "model": "nano",
        "data": {"train": "train.jsonl", "validation": None, "test": "test.jsonl", "max_tokens": 256},
        "train": {"tuner": "full", "batch": {"records": 16}, "save": {"every": None}},
        "budget": {"updates": options.updates},
        "evaluate": {"perplexity": False},
        "generate": {"max_new_tokens": NEW},
    }


def luthier(folder: Path, *words: str) -> dict[str, float]:
    """Seconds of one command in this folder, as they passed and of the processor."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "luthier", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"luthier {' '.join(words)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "processor_seconds": spent}


def phases(folder: Path) -> dict[str, float]:
    """What all runs in here recorded of themselves, added up by phase."""
    total: Counter[str] = Counter()
    for path in folder.rglob("run.json"):
        total.update(json.loads(path.read_text(encoding="utf-8"))["seconds"])
    return dict(total)


def together(folder: Path, methods: Sequence[str]) -> dict[str, Any]:
    words = ("recipe.json", "--methods", ",".join(methods), "--seeds", "1", "--out", "together")
    found: dict[str, Any] = luthier(folder, "compare", *words)
    return found | {"phases": phases(folder / "together")}


def by_hand(folder: Path, methods: Sequence[str]) -> dict[str, Any]:
    runs = [luthier(folder, "run", "recipe.json", "--method", name, "--out", "apart") for name in methods]
    evals = [luthier(folder, "eval", "nano", f"generate.max_new_tokens={NEW}", "--data", "test.jsonl") for _ in methods]
    found: dict[str, Any] = {key: sum(one[key] for one in (*runs, *evals)) for key in runs[0]}
    found["evaluations_of_the_base"] = {key: sum(one[key] for one in evals) for key in runs[0]}
    return found | {"phases": phases(folder / "apart")}


def one_round(options: argparse.Namespace, turn: int) -> dict[str, Any]:
    """Both sides from nothing, in a folder of their own; which is first changes."""
    folder = Path(tempfile.mkdtemp(prefix="saving-"))
    try:
        write_data(folder, options)
        (folder / "recipe.json").write_text(json.dumps(recipe(options)), encoding="utf-8")
        sides = [("together", together), ("by_hand", by_hand)]
        return {name: side(folder, options.methods) for name, side in (sides if turn % 2 else sides[::-1])}
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["sft", "dft", "asft"])
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rounds = [one_round(options, turn) for turn in range(options.rounds)]
    saved = {}
    print(f"{len(options.methods)} methods   {'together':>10} {'by hand':>10} {'saved':>7}")
    for key in ("seconds", "processor_seconds"):
        ours, theirs = (statistics.median(one[side][key] for one in rounds) for side in ("together", "by_hand"))
        saved[key] = 1 - ours / theirs
        print(f"{key:18} {ours:6.1f} {theirs:10.1f} {saved[key]:7.0%}")
    names = sorted({name for one in rounds for side in one.values() for name in side["phases"]})
    for name in names:
        pair = (
            statistics.median(one[side]["phases"].get(name, 0.0) for one in rounds) for side in ("together", "by_hand")
        )
        print("  {:16} {:6.1f} {:10.1f}   (of the runs)".format(name, *pair))
    base = statistics.median(one["by_hand"]["evaluations_of_the_base"]["seconds"] for one in rounds)
    print(f"  {'eval of the base':16} {'':6} {base:10.1f}   (together: among the runs)")
    setup = {key: value for key, value in vars(options).items() if key != "output"}
    result.write("compare_saving", {"setup": setup, "saved": saved, "rounds": rounds}, options.output)


if __name__ == "__main__":
    main()
