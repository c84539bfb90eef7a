"""Where an update's time goes, and how near each phase comes to what this machine can do.

    python bench/flops.py                      # about two minutes on one core; writes results/flops.json

SmolLM2-135M's architecture with random weights, made-up records, full fine-tuning by sft through the engine as a run
sets it up. First the ceilings: the fastest of this machine's matrix products with the very shapes of the model, and
the bandwidth of a copy in memory. Then updates with a clock around each phase; a phase's own time does not count
the phases within it. The counts, for T positions (padding included), N targets, P weights of the layers, layers L,
width of all heads D, vocabulary V, width of the model d, and S the sum of squares of the rows' lengths:

    forward    2 P T + 2 L D S          (attention sees half of each square, twice: scores and values)
    backward   twice that
    head       6 V d N                  (logits, and the gradients of both factors; recomputed nowhere)
    optimiser  28 bytes for each weight: reads weight, gradient and two moments, writes all but the gradient
    clipping   4 bytes for each weight: the norm of the gradient

"of ceiling" is what was reached by what the ceiling allows; what is left over (drawing, collating, Python) is a share
of the update's time. Seconds are those of the processor, of all threads: other work on the machine hardly moves them,
and the rates are those of one core.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import result
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luthier import parts
from luthier.engine import allocator, master_weights, update
from luthier.engine.assemble import Parts, tuned_policy
from luthier.engine.budget import Budget
from luthier.engine.micro_batches import Batching
from luthier.engine.source import Records
from luthier.engine.trainer import Trainer
from luthier.modalities.base import MICRO_TOKENS
from luthier.models.kernels.attention import use_short_rows
from luthier.models.kernels.head import Head
from luthier.models.loading.load import fast_bfloat16
from luthier.models.policy import TokenPolicy
from luthier.tuners.base import TunerInputs
from luthier.types import Row, Stream

SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


class Clock:
    """Seconds of each phase, without those of the phases within it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[list[Any]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._open.append([time.process_time(), 0.0])
        try:
            yield
        finally:
            started, inner = self._open.pop()
            whole = time.process_time() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + whole - inner
            if self._open:
                self._open[-1][1] += whole

    @contextmanager
    def around(self, owner: Any, verb: str, name: str) -> Iterator[None]:
        """Time every call of a method while this lasts."""
        own: Callable = getattr(owner, verb)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return own(*args, **kwargs)

        setattr(owner, verb, timed)
        try:
            yield
        finally:
            setattr(owner, verb, own)


def best(call: Callable[[], Any], seconds: float = 0.5) -> float:
    """The fastest of the calls that fit into this time: on a shared machine a ceiling is what was ever reached."""
    call()
    end, found = time.process_time() + seconds, float("inf")
    while time.process_time() < end:
        started = time.process_time()
        call()
        found = min(found, time.process_time() - started)
    return found


def products(positions: int, targets: int, dtype: torch.dtype) -> dict[str, float]:
    """FLOP/s of a product [n,k] × [k,m] for each shape of the model."""
    width, inner, vocabulary = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["vocab_size"]
    shapes = {
        "attention": (positions, width, width),
        "mlp up": (positions, width, inner),
        "mlp down": (positions, inner, width),
        "head": (targets, width, vocabulary),
    }
    found = {}
    for name, (n, k, m) in shapes.items():
        left, weight = torch.randn(n, k).to(dtype), torch.randn(m, k).to(dtype)
        found[name] = 2 * n * k * m / best(lambda a=left, b=weight: torch.nn.functional.linear(a, b))
    return found


def bandwidth(count: int = 2**26) -> float:
    """Bytes per second, read and written, of a copy of 256 MiB."""
    source, target = torch.ones(count), torch.zeros(count)
    return 8 * count / best(lambda: target.copy_(source))


def made_up_rows(count: int) -> list[Row]:
    """Records of 90 to 270 tokens, of which 60 to 180 are targets."""
    draw = numpy.random.default_rng(0)
    rows = []
    for index in range(count):
        prompt = int(draw.integers(30, 90))
        weights = numpy.ones(prompt + int(draw.integers(60, 180)), dtype=numpy.float32)
        weights[:prompt] = 0
        ids = draw.integers(0, SHAPE["vocab_size"], len(weights)).astype(numpy.int32)
        rows.append(Row(f"{index}", ids, {"weights": Stream(weights, "token", 0.0)}))
    return rows


def make_trainer(options: argparse.Namespace, dtype: torch.dtype, ends: list[float]) -> Trainer:
    allocator.tune_allocator()  # as every run does
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=options.layers, **SHAPE)).to(dtype)
    use_short_rows(model)  # as loading does
    objective, tuner = parts.build("objective", "sft"), parts.build("tuner", "full")
    rows = made_up_rows(options.records * (options.updates + 1))
    chosen = Parts(objective, (tuner,), parts.build("optimizer", "adamw"), parts.build("schedule", "constant"))
    return Trainer(
        policy=tuned_policy(model, chosen, TunerInputs(0, rows)),
        parts=chosen,
        source=Records(rows, 0, Budget("updates", options.updates + 1)),
        batching=Batching(options.records, MICRO_TOKENS["cpu"], "padded"),
        observe=lambda event: ends.append(time.process_time()),
    )


def profile(options: argparse.Namespace, dtype: torch.dtype) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Seconds of each phase of every update but the first, and what those updates counted on average."""
    ends: list[float] = []
    trainer, clock = make_trainer(options, dtype, ends), Clock()
    seen: list[dict[str, float]] = []
    batches: list[Any] = []
    timed = [
        clock.around(TokenPolicy, "hidden", "forward"),
        clock.around(Head, "sum", "head"),
        clock.around(torch.Tensor, "backward", "backward"),
        clock.around(master_weights.MasterWeights, "norms", "clipping"),
        clock.around(master_weights.MasterWeights, "step", "optimiser"),
    ]
    first = trainer.observe

    def observe(event: dict[str, Any]) -> None:
        first(event)
        seen.append(dict(clock.seconds))

    trainer.observe = observe
    with keep(batches), timed[0], timed[1], timed[2], timed[3], timed[4]:
        trainer.train()
    found = []
    for index in range(1, len(ends)):
        one = {name: seconds - seen[index - 1][name] for name, seconds in seen[index].items()}
        whole = ends[index] - ends[index - 1]
        found.append({**one, "all else": whole - sum(one.values()), "whole": whole})
    return found, counts(trainer.policy.module, batches, options)


@contextmanager
def keep(batches: list[Any]) -> Iterator[None]:
    """Remember every micro-batch that is trained on."""
    own = update.backward

    def kept(policy: Any, objective: Any, tuners: Any, batch: Any, now: Any, sums: Any) -> float:
        if now.index > 1:
            batches.append(batch)
        return own(policy, objective, tuners, batch, now, sums)

    update.backward = kept
    try:
        yield
    finally:
        update.backward = own


def counts(model: Any, batches: list[Any], options: argparse.Namespace) -> dict[str, float]:
    """FLOP and bytes of one update, averaged."""
    layers = sum(p.numel() for p in model.model.layers.parameters() if p.dim() == 2)
    positions = sum(batch.ids.numel() for batch in batches) / options.updates
    squares = sum(batch.ids.shape[0] * batch.ids.shape[1] ** 2 for batch in batches) / options.updates
    targets = sum(len(batch.targets()[0]) for batch in batches) / options.updates
    weights = sum(p.numel() for p in model.parameters())
    forward = 2 * layers * positions + 2 * options.layers * SHAPE["hidden_size"] * squares
    return {
        "positions": positions,
        "targets": targets,
        "weights": weights,
        "micro_batches": len(batches) / options.updates,
        "forward": forward,
        "backward": 2 * forward,
        "head": 6 * SHAPE["vocab_size"] * SHAPE["hidden_size"] * targets,
        "optimiser": 28 * weights,
        "clipping": 4 * weights,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    types = [torch.float32, *([torch.bfloat16] if fast_bfloat16(torch.device("cpu")) else [])]
    peaks = {str(dtype): products(MICRO_TOKENS["cpu"], 256, dtype) for dtype in types}
    moved = bandwidth()
    dtype = types[-1]
    updates, counted = profile(options, dtype)
    peak = max(peaks[str(dtype)].values())
    lines = [line(name, updates, counted, peak, moved) for name in updates[0]]
    for name, one in peaks.items():
        print(name, "GFLOP/s:", ", ".join(f"{shape} {rate / 1e9:.1f}" for shape, rate in one.items()))
    print(f"copy: {moved / 1e9:.1f} GB/s; {counted['positions']:.0f} positions, {counted['targets']:.0f} targets")
    print(f"{'phase':10} {'seconds':>8} {'share':>6} {'work':>14} {'rate':>14} {'of ceiling':>10}")
    for one in lines:
        print(sentence(one))
    setup = {"layers": options.layers, "records": options.records, "updates": options.updates, "dtype": str(dtype)}
    ceilings = {"flops_per_second": peaks, "bytes_per_second": moved}
    result.write("flops", {"setup": setup, "ceilings": ceilings, "counts": counted, "phases": lines}, options.output)


def line(name: str, updates: list[dict], counted: dict[str, float], peak: float, moved: float) -> dict[str, Any]:
    """A phase: median seconds, share of the update, rate and share of the ceiling."""
    seconds = statistics.median(one[name] for one in updates)
    found: dict[str, Any] = {"phase": name, "seconds": seconds}
    found["share"] = seconds / statistics.median(one["whole"] for one in updates)
    work, unit, ceiling = counted.get(name), "FLOP", peak
    if name in ("optimiser", "clipping"):
        unit, ceiling = "B", moved
    if name == "whole":
        work = sum(counted[phase] for phase in ("forward", "backward", "head"))
    if work is not None:
        found |= {"work": work, "unit": unit, "rate": work / seconds, "of_ceiling": work / seconds / ceiling}
    return found


def sentence(one: dict[str, Any]) -> str:
    start = f"{one['phase']:10} {one['seconds']:8.3f} {one['share']:6.1%}"
    if "work" not in one:
        return start
    work, rate = (f"{one[key] / 1e9:.1f} G{one['unit']}" for key in ("work", "rate"))
    return f"{start} {work:>14} {rate + '/s':>14} {one['of_ceiling']:10.0%}"


if __name__ == "__main__":
    main()
