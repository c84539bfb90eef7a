"""Luthier beside plain transformers on one GPU: tokens/s, share of the GPU's peak (MFU) and peak memory.

    python bench/gpu.py                                   # every case at 0.5b, 1b and 3b; writes results/gpu.json
    python bench/gpu.py --sizes 1b --only sft-full sft-lora --steps 10
    python bench/gpu.py --tiny --device cpu               # every case in a minute, to see that they run

Needs torch, transformers, peft and pydantic as they are there, and no download: Llama-shaped models of random weights,
made-up tokens. Where luthier is not installed, the source beside this file is used. A case that fails (out of memory)
is a line of the table, and the JSON is written after every case.

The cases, each by `luthier` and by `plain` transformers, and again with `+compile` (torch.compile of every layer):

    sft-full      full fine-tuning, rows of `--context` tokens, all of them targets
    sft-lora      LoRA of rank 16 on all linear layers
    grpo-update   an update on 4 groups of 8 answers, an eighth of the context each, behind a prompt as long
    generation    those answers sampled (here without compile)

On a GPU ours holds bfloat16 weights over float32 masters; plain is what transformers' Trainer does with bf16=True:
float32 weights under autocast. Both use AdamW's fused kernel, clip at 1, and take as many rows per forward.
The first `--warm` updates are not counted. MFU takes the model's own FLOP and nothing computed twice: a token costs
6 (P + V d) + 6 L D T for P weights of the layers, vocabulary V, width d, layers L, width D of the heads and T
positions (attention sees half of the square); under LoRA 4 (P + V d) + 6 L D T. The peak is that of the GPU's name
where the table knows it, else the fastest product of two square matrices measured first (also in the JSON).
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import result
import torch
from transformers import LlamaConfig, LlamaForCausalLM

try:
    import luthier
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
    import luthier

from luthier import parts
from luthier.engine import usage
from luthier.engine.assemble import Parts
from luthier.engine.budget import Budget
from luthier.engine.micro_batches import Batching
from luthier.engine.source import Records
from luthier.engine.trainer import Trainer, set_training
from luthier.models.policy import TokenPolicy
from luthier.sampling.native import NativeSampler
from luthier.tuners.base import TunerInputs
from luthier.types import Request, Row, Sampling, Stream

SIZES: dict[str, tuple[int, int, int, int, int, int]] = {
    # width, inner width, layers, heads, heads of keys, vocabulary
    "tiny": (64, 128, 2, 4, 2, 512),
    "0.5b": (1024, 4096, 20, 16, 8, 128_256),
    "1b": (2048, 8192, 16, 32, 8, 128_256),
    "3b": (3072, 8192, 28, 24, 8, 128_256),
}
ROWS = {"tiny": 2, "0.5b": 4, "1b": 2, "3b": 1}
"""Rows of `--context` tokens in one forward."""
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12}
"""FLOP/s in bfloat16, dense, as the makers state them; the first name that fits."""
WORK = ("sft-full", "sft-lora", "grpo-update", "generation")
GROUPS, GROUP = 4, 8


@dataclass(frozen=True)
class Setting:
    """What every case is told."""

    size: str
    context: int
    steps: int
    warm: int
    forwards: int  # micro-batches of an update
    device: torch.device
    compiler: str
    checkpointing: bool

    @property
    def rows(self) -> int:
        return ROWS[self.size]

    @property
    def vocabulary(self) -> int:
        return SIZES[self.size][-1]

    @property
    def eighth(self) -> int:
        """Tokens of a prompt, and of an answer, of reinforcement learning."""
        return max(4, self.context // 8)

    @property
    def narrow(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32


def make_model(setting: Setting, dtype: torch.dtype) -> Any:
    width, inner, layers, heads, keys, vocabulary = SIZES[setting.size]
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        vocab_size=vocabulary,
        max_position_embeddings=2 * setting.context,
        tie_word_embeddings=True,
        use_cache=True,
    )
    torch.manual_seed(0)
    with torch.device(setting.device):
        model: Any = LlamaForCausalLM(config)
    model = model.to(dtype)
    if setting.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def flop_per_token(setting: Setting, length: int, lora: bool) -> float:
    """Of forward and backward; see the head of this file."""
    width, inner, layers, heads, keys, vocabulary = SIZES[setting.size]
    head = width // heads
    weights = layers * (2 * width * heads * head + 2 * width * keys * head + 3 * width * inner)
    return (4 if lora else 6) * (weights + vocabulary * width) + 6 * layers * heads * head * length


# Ours


def sft_rows(setting: Setting, updates: int) -> list[Row]:
    draw = numpy.random.default_rng(0)
    count = updates * setting.forwards * setting.rows
    weights = numpy.ones(setting.context, dtype=numpy.float32)
    return [
        Row(
            f"{i}",
            draw.integers(0, setting.vocabulary, setting.context).astype(numpy.int32),
            {"weights": token(weights)},
        )
        for i in range(count)
    ]


def token(values: Any) -> Stream:
    return Stream(values, "token", 0.0)


def grpo_rows(setting: Setting, updates: int) -> list[Row]:
    """Groups of answers to one prompt, with advantages."""
    draw, length = numpy.random.default_rng(0), setting.eighth
    weights = numpy.repeat(numpy.array([0.0, 1.0], dtype=numpy.float32), length)
    rows = []
    for group in range(updates * GROUPS):
        prompt = draw.integers(0, setting.vocabulary, length)
        for answer in range(GROUP):
            ids = numpy.concatenate([prompt, draw.integers(0, setting.vocabulary, length)]).astype(numpy.int32)
            advantage = numpy.full(2 * length, draw.normal(), dtype=numpy.float32)
            rows.append(Row(f"{group}/{answer}", ids, {"weights": token(weights), "advantages": token(advantage)}))
    return rows


def ours(setting: Setting, work: str, compiled: bool) -> Iterator[int]:
    """Yields the tokens of each update when it is over."""
    updates = setting.warm + setting.steps
    tuner = parts.build("tuner", "lora" if work == "sft-lora" else "full")
    grpo = work == "grpo-update"
    rows = (grpo_rows if grpo else sft_rows)(setting, updates)
    module = make_model(setting, setting.narrow).requires_grad_(False)
    policy = TokenPolicy(tuner.apply(module, tuner.plan(module, TunerInputs(0, rows))))
    if compiled:
        compile_layers(policy.layers, setting)
    tokens: list[int] = []
    records = len(rows) // updates
    objective = parts.build("objective", "grpo" if grpo else "sft")
    chosen = Parts(objective, (tuner,), parts.build("optimizer", "adamw"), parts.build("schedule", "constant"))
    trainer = Trainer(
        policy=policy,
        parts=chosen,
        source=Records(rows, 0, Budget("updates", updates), shuffled=False),
        batching=Batching(records, setting.rows * setting.context, "shared" if grpo else "padded"),
        observe=lambda event: tokens.append(event["tokens"]) if event["event"] == "update" else None,
    )
    set_training(policy, True)
    for _ in range(updates):
        trainer._one_update()
        yield tokens[-1] - (tokens[-2] if len(tokens) > 1 else 0)


def compile_layers(layers: Any, setting: Setting) -> None:
    for layer in layers:
        layer.compile(backend=setting.compiler)


# Plain transformers


def plain(setting: Setting, work: str, compiled: bool) -> Iterator[int]:
    """Yields the tokens of each update when it is over."""
    lora = work == "sft-lora"
    model = make_model(setting, setting.narrow if lora else torch.float32)
    layers = model.model.layers
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    if compiled:
        compile_layers(layers, setting)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    loss_of = grpo_loss if work == "grpo-update" else sft_loss
    batches = plain_batches(setting, work)
    model.train()
    for _ in range(setting.warm + setting.steps):
        for batch in batches:
            with autocast(setting):
                loss = loss_of(model, batch) / len(batches)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield sum(ids.numel() for ids, _ in batches)


def autocast(setting: Setting) -> Any:
    on = setting.device.type == "cuda"
    return torch.autocast("cuda", torch.bfloat16) if on else nullcontext()


def plain_batches(setting: Setting, work: str) -> list[tuple[Any, Any]]:
    """(ids [B,T], advantages [B]) of each forward, as many positions as ours."""
    if work == "grpo-update":
        rows, most = grpo_rows(setting, 1), max(1, setting.rows * setting.context // (2 * setting.eighth))
    else:
        rows, most = sft_rows(setting, 1), setting.rows
    found = []
    for start in range(0, len(rows), most):
        cut = rows[start : start + most]
        ids = torch.from_numpy(numpy.stack([row.ids for row in cut])).long().to(setting.device)
        values = [float(row.streams["advantages"].values[0]) if "advantages" in row.streams else 0.0 for row in cut]
        found.append((ids, torch.tensor(values, device=setting.device)))
    return found


def sft_loss(model: Any, batch: tuple[Any, Any]) -> Any:
    return model(input_ids=batch[0], labels=batch[0], use_cache=False).loss


def grpo_loss(model: Any, batch: tuple[Any, Any]) -> Any:
    """The policy gradient of one update per rollout, over the answers' tokens."""
    ids, advantages = batch
    answer = ids.shape[1] // 2
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=answer + 1).logits[:, :-1].float()
    logprob = logits.log_softmax(-1).gather(-1, ids[:, answer:, None])[..., 0]
    return -((logprob - logprob.detach()).exp() * advantages[:, None]).mean()


# Generation


def generation(setting: Setting, by: str) -> Iterator[int]:
    """Yields the tokens written in each round: answers to the prompts of a rollout, none of which ends early."""
    model = make_model(setting, setting.narrow).eval()
    draw = numpy.random.default_rng(0)
    prompts = [draw.integers(0, setting.vocabulary, setting.eighth).tolist() for _ in range(GROUPS)]
    for turn in range(min(setting.warm, 1) + max(1, setting.steps // 4)):
        if by == "luthier":
            requests = [Request(p, f"{i}", seed=1000 * turn + k) for i, p in enumerate(prompts) for k in range(GROUP)]
            sampler = NativeSampler(model, set(), batch=len(requests))
            yield sum(len(one.ids) for one in sampler(requests, Sampling(setting.eighth, 1.0)))
        else:
            yield plain_generation(model, torch.tensor(prompts, device=setting.device), setting)


def plain_generation(model: Any, prompts: Any, setting: Setting) -> int:
    with torch.inference_mode():
        out = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=GROUP,
            max_new_tokens=setting.eighth,
            min_new_tokens=setting.eighth,
            eos_token_id=None,
            pad_token_id=0,
        )
    return out[:, prompts.shape[1] :].numel()


# The table


def measured(setting: Setting, run: Callable[[], Iterator[int]], skip: int) -> dict[str, Any]:
    """Seconds of each turn but the first ones, tokens per second (of the median) and peak memory."""
    seconds: list[float] = []
    counts: list[int] = []
    base = reset(setting)
    started = time.perf_counter()
    for tokens in run():
        if setting.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        counts.append(tokens)
        started = time.perf_counter()
    kept = seconds[skip:]
    rate = statistics.median(n / s for n, s in zip(counts[skip:], kept, strict=True))
    return {
        "tokens_per_second": rate,
        "seconds": statistics.median(kept),
        "first_seconds": seconds[0],
        "all_seconds": kept,
        "peak_memory_bytes": usage.peak() - base,
    }


def reset(setting: Setting) -> int:
    """Forget earlier cases; what the process holds besides (on a GPU nothing)."""
    gc.collect()
    torch.compiler.reset()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
    usage.reset_peak()
    return 0 if setting.device.type == "cuda" else usage.resident()


def cases(only: list[str], compiled: bool) -> Iterator[tuple[str, str, bool]]:
    """(work, by whom, compiled)."""
    for work in only:
        for by in ("luthier", "plain"):
            yield work, by, False
            if compiled and work != "generation":
                yield work, by, True


def runner(setting: Setting, work: str, by: str, compiled: bool) -> tuple[Callable[[], Iterator[int]], int]:
    """What a case runs, and how many of its turns are not counted."""
    if work == "generation":
        return partial(generation, setting, by), min(setting.warm, 1)
    return partial(ours if by == "luthier" else plain, setting, work, compiled), setting.warm


def case(setting: Setting, work: str, by: str, compiled: bool, peak: float) -> dict[str, Any]:
    """One line of the table; what fails is a line too."""
    one: dict[str, Any] = {"size": setting.size, "work": work, "by": by + ("+compile" if compiled else "")}
    try:
        run, skip = runner(setting, work, by, compiled)
        with quiet():
            one |= measured(setting, run, skip)
        if work.startswith("sft"):
            flop = flop_per_token(setting, setting.context, work == "sft-lora")
            one["mfu"] = flop * one["tokens_per_second"] / peak
    except Exception as error:  # the table goes on, whatever a case breaks on
        one["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
        one["where"] = traceback.format_exc(limit=-3)
    return one


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' advice about generation settings."""
    import transformers

    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(level)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the product of two square matrices, the best of some."""
    size = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    fastest = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * size**3 / fastest


def sentence(one: dict[str, Any]) -> str:
    start = f"{one['size']:5} {one['work']:12} {one['by']:16}"
    if "error" in one:
        return f"{start} {one['error']}"
    mfu = f"{one['mfu']:7.1%}" if "mfu" in one else f"{'':7}"
    numbers = f"{one['tokens_per_second']:12,.0f} {mfu} {one['peak_memory_bytes'] / 2**30:9.2f}"
    return f"{start} {numbers} {one['seconds']:9.3f} {one['first_seconds']:9.1f}"


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["0.5b", "1b", "3b"])
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--forwards", type=int, default=4, help="micro-batches of an update of sft")
    parser.add_argument("--only", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, for both")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="every case in a minute on a processor")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.tiny:
        options.sizes, options.context, options.steps, options.warm, options.forwards = ["tiny"], 64, 2, 1, 2
    return options


def main() -> None:
    options = read_options()
    device = torch.device(options.device)
    narrow = torch.bfloat16 if device.type == "cuda" else torch.float32
    found = matmul_peak(device, narrow)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = next((flops for known, flops in PEAKS.items() if known in name), found)
    print(f"{name or device}: peak {peak / 1e12:.2f} TFLOP/s, measured {found / 1e12:.2f}; luthier {luthier.__file__}")
    print(f"size  {'work':12} {'by':16} {'tokens/s':>12} {'MFU':>7} {'peak GiB':>9} {'update s':>9} {'first s':>9}")
    lines: list[dict[str, Any]] = []
    setup = {key: value for key, value in vars(options).items() if key != "output"} | {"dtype": str(narrow)}
    peaks = {"peak_flops_per_second": peak, "measured_flops_per_second": found}
    for size in options.sizes:
        setting = Setting(
            size=size,
            context=options.context,
            steps=options.steps,
            warm=options.warm,
            forwards=options.forwards,
            device=device,
            compiler="eager" if options.tiny else "inductor",
            checkpointing=options.checkpointing,
        )
        for work, by, compiled in cases(options.only, not options.no_compile):
            lines.append(case(setting, work, by, compiled, peak))
            print(sentence(lines[-1]), flush=True)
            result.write("gpu", {"setup": setup, **peaks, "cases": lines}, options.output, say=False)
    if all("error" in line for line in lines):
        sys.exit("No case ran.")


if __name__ == "__main__":
    main()
