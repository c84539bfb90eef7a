"""Tokens per second of sampling in groups, ours beside transformers' `generate`, in interleaved runs of one process.

    python bench/generation.py                  # about five minutes on one core; writes results/generation.json

Both get the same prompts (records of the bundled data that `nano` was trained on), eight continuations of each, the
same temperature, the same most new tokens and as many rows at a time. Two cases: `ends`, where a continuation ends at
the model's own end token and only tokens up to it count; and `fixed`, where every continuation takes all its tokens,
so that nothing is gained from rows that end early. The ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import result
import torch
import transformers

from luthier import parts
from luthier.data.render import Renderer
from luthier.models.loading.load import load_model
from luthier.recipe.settings import Model
from luthier.sampling.native import NativeSampler
from luthier.types import Request, Sampling


def cases(module, renderer, prompts: list[list[int]], group: int, new: int) -> dict[str, tuple[Callable, Callable]]:
    """(ours, theirs) by name; each call returns the number of tokens written."""
    requests = [Request(p, str(i), seed=100 * i + k) for i, p in enumerate(prompts) for k in range(group)]
    rows, width = len(requests), max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])

    def ours(ends: set[int]) -> int:
        found = NativeSampler(module, ends, batch=rows)(requests, Sampling(new, 1.0))
        return sum(len(one.ids) for one in found)

    def theirs(ends: set[int]) -> int:
        with torch.inference_mode():
            out = module.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=group,
                max_new_tokens=new,
                eos_token_id=sorted(ends) or None,
                min_new_tokens=None if ends else new,
                pad_token_id=0,
            )[:, width:]
        over = torch.isin(out, torch.tensor(sorted(ends))) if ends else torch.zeros_like(out, dtype=torch.bool)
        return int((over.cumsum(1) - over.long() == 0).sum())

    ends = set(renderer.end_ids)
    return {
        "ends": (lambda: ours(ends), lambda: theirs(ends)),
        "fixed": (lambda: ours(set()), lambda: theirs(set())),
    }


def measured(pair: tuple[Callable, Callable], runs: int) -> dict:
    """Tokens per second of both, from runs that take turns."""
    rates: dict[str, list[float]] = {"ours": [], "transformers": []}
    for run in range(runs + 1):
        for name, call in zip(rates, pair, strict=True):
            start = time.perf_counter()
            tokens = call()
            if run:  # the first one warms up
                rates[name].append(tokens / (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {"tokens_per_second": rates, "medians": medians, "ratio": medians["ours"] / medians["transformers"]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Sampling in groups beside transformers.")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    loaded = load_model(Model(path="nano", dtype="float32"), Path("."), torch.device("cpu"))
    module = loaded.module.eval()
    renderer = Renderer(loaded.tokenizer, "chat", "auto")
    data = parts.build("dataset", {"kind": "strings", "count": options.prompts, "longest": 16})
    prompts = [renderer.prompt(record) for record in data.records()]
    found = {
        name: measured(pair, options.runs)
        for name, pair in cases(module, renderer, prompts, options.group, options.new).items()
    }
    written = {
        "setting": {
            "prompts": options.prompts,
            "group": options.group,
            "new": options.new,
            "runs": options.runs,
            "model": "nano",
            "dtype": "float32",
            "temperature": 1.0,
            "threads": 1,
        },
        "prompt_tokens": [len(prompt) for prompt in prompts],
        "results": found,
    }
    result.write("generation", written, options.output)
    for name, one in found.items():
        print(name, {key: round(value) for key, value in one["medians"].items()}, f"ratio {one['ratio']:.2f}")


if __name__ == "__main__":
    main()
