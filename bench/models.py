"""Every path of a run on tiny random models of nearly all causal types of transformers, against transformers alone.

    python bench/models.py                      # all types, about an hour on one core; writes results/models.json
    python bench/models.py llama mixtral        # some of them: only prints

Each type is built small (`zoo.py`), saved as a model folder, and goes in a process of its own through the paths
below. The expected numbers come from transformers alone: one record per forward, no padding, no mask, no positions
given, no cache. Outcomes of a path: right; refused (a message of ours, before any work); late (a message of ours, but
only after training); wrong (numbers differ); crash (any other exception, a kill or a timeout). A type is right if
full, lora, read back, sampling and choices all are.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import resource
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
import zoo
from torch import Tensor

from luthier.cli.app import app
from luthier.errors import LuthierError
from luthier.models.loading.load import load_model, load_tokenizer
from luthier.recipe.settings import Model
from luthier.sampling.native import NativeSampler
from luthier.sampling.scoring import choice_logprobs
from luthier.types import Request, Sampling

SECONDS, MEMORY = 240, 10 * 2**30
UPDATES, RATE = 3, 3e-3
TUNERS = ("full", "lora", "s2ft", "spiel")
PATHS = (*TUNERS, "packed", "merged", "bfloat16", "dpo", "sampling", "choices")
STATES = ("right", "refused", "late", "wrong", "crash", "skipped")
RUNS = (*TUNERS, "packed", "bfloat16", "dpo")
NEEDED = ("full", "lora", "merged", "sampling", "choices")
LOSS, SAVED, LOGPROB = 2e-3, 2e-3, 5e-3  # nats per token; float32 of models whose logits spread over several units

RECIPE = """
model: {{path: model, dtype: {dtype}}}
data: {{train: {train}.jsonl, test: test.jsonl, validation: null, render: "{{prompt}}{{completion}}"}}
train:
  tuner: {tuner}
  objective: {objective}
  batch: {{records: 6, layout: {layout}}}
  schedule: {{kind: constant}}
  optimizer: {{kind: adamw, lr: {rate}, betas: [0.9, 0.95], clip: 1.0}}
  precision: {dtype}
budget: {{updates: {updates}}}
evaluate: {{metric: perplexity, perplexity: false}}
"""

# Rows of 9 to 60 tokens (the tokenizer has one per character): below and above the windows of the models.
LENGTHS = (3, 5, 9, 14, 26, 49)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Wrong(Exception):
    """Numbers that differ from those of transformers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="types or variants; none: all")
    parser.add_argument("--paths", nargs="*", default=PATHS, help="paths to try")
    parser.add_argument("--before", type=Path, help="outcomes of an earlier version, for the page")
    parser.add_argument("--out", type=Path, help="file to add the outcomes to")
    arguments = parser.parse_args()
    out = arguments.out or (None if arguments.names else Path(__file__).parent / "results" / "models.json")
    outcomes = json.loads(out.read_text()) if out and out.exists() else {}
    for name in arguments.names or zoo.names():
        if name in outcomes and not arguments.names:
            continue
        outcomes[name] = in_own_process(name, arguments.paths)
        print(name, {path: f"{state} {why}"[:160] for path, (state, why) in outcomes[name].items()}, flush=True)
        if out:
            out.write_text(json.dumps(outcomes, indent=1, sort_keys=True) + "\n")
    print_counts(outcomes)
    if not arguments.names:
        page = Path(__file__).parent / "results" / "models.md"
        page.write_text(page_of(outcomes, json.loads(arguments.before.read_text()) if arguments.before else {}))


def page_of(outcomes: dict[str, Any], before: dict[str, Any]) -> str:
    """The table of types and paths, counts beside those of an earlier version, and every refusal with its reason."""
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    lines = [
        "# Tiny models of all causal types, path by path",
        "",
        f"Command: `python bench/models.py` ({versions}; one core). The expected numbers come from transformers alone.",
        "",
        "- *right*: equal numbers. *refused*: a message before any work. *late*: a message after training.",
        "- *wrong*: other numbers without a word. *crash*: any other exception.",
        "- *skipped*: the path needs another one that failed.",
        "",
        "| path | " + " | ".join(STATES) + (" | before: " + " | ".join(STATES) if before else "") + " |",
        "|---" * (1 + len(STATES) * (2 if before else 1)) + "|",
    ]
    for path in ("built", *PATHS):
        cells = [str(count) for count in counts_of(outcomes, path)]
        cells += [str(count) for count in counts_of(before, path)] if before else []
        lines.append(f"| {path} | " + " | ".join(cells) + " |")
    usable = [name for name, paths in outcomes.items() if is_usable(paths)]
    earlier = [name for name, paths in before.items() if is_usable(paths)]
    lines += ["", f"Right in full, lora, merged, sampling and choices: {len(usable)} of {len(outcomes)} types."]
    lines += [f"Before: {len(earlier)} of {len(before)}."] if before else []
    lines += ["", "| type | " + " | ".join(PATHS) + " |", "|---" * (1 + len(PATHS)) + "|"]
    reasons: dict[str, list[str]] = {}
    for name, paths in sorted(outcomes.items()):
        lines.append(f"| {name} | " + " | ".join(paths.get(path, ("",))[0] for path in PATHS) + " |")
        for path, (state, why) in paths.items():
            if state not in ("right", "skipped"):
                reasons.setdefault(f"{state}: {' '.join(why.split())}", []).append(f"{name} ({path})")
    lines += ["", "## Everything that is not right, with its reason", ""]
    lines += [f"- {reason} — {', '.join(cases)}" for reason, cases in sorted(reasons.items())]
    return "\n".join(lines) + "\n"


def counts_of(outcomes: dict[str, Any], path: str) -> list[int]:
    states = collections.Counter(paths[path][0] for paths in outcomes.values() if path in paths)
    return [states[state] for state in STATES]


def is_usable(paths: dict[str, Any]) -> bool:
    return all(paths.get(path, ("",))[0] == "right" for path in NEEDED)


def print_counts(outcomes: dict[str, Any]) -> None:
    """How many types have each outcome, by path, and how many are right in all that a user needs first."""
    for path in ("built", *PATHS):
        states = collections.Counter(paths[path][0] for paths in outcomes.values() if path in paths)
        print(f"{path:10}", dict(states.most_common()))
    usable = [is_usable(paths) for paths in outcomes.values()]
    states = collections.Counter()
    for paths in outcomes.values():
        states.update({state for state, _ in paths.values()})
    print(f"types {len(outcomes)}; right {sum(usable)}; types with a path that is", dict(states))


def in_own_process(name: str, paths: list[str]) -> dict[str, tuple[str, str]]:
    """Path → (outcome, detail), from a child process with limits of time and memory."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(readable)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        torch.set_num_threads(1)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        with tempfile.TemporaryDirectory() as folder, os.fdopen(writable, "w") as report:
            os.chdir(folder)
            for path, state, why in outcomes_of(name, paths):
                report.write(json.dumps([path, state, why]) + "\n")
                report.flush()
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as report:
        lines = [json.loads(line) for line in report]
    _, status = os.waitpid(pid, 0)
    outcomes = {path: (state, why) for path, state, why in lines}
    if status:
        unfinished = next((path for path in ("built", *paths) if path not in outcomes), "built")
        outcomes[unfinished] = ("crash", f"process ended with status {status}")
    return outcomes


def outcomes_of(name: str, paths: list[str]):
    """(path, outcome, detail) of each path in turn; the model folder is `model` in the working directory."""
    try:
        zoo.save(name, Path("model"))
    except Exception as error:
        yield "built", "skipped", detail(error)  # transformers does not build it from this config
        return
    yield "built", "right", ""
    write_data()
    for path in paths:
        signal.alarm(SECONDS)
        try:
            check_of(path)()
            if path in RUNS and not causal():
                raise Wrong("a model that sees the future was trained")
            yield path, "right", ""
        except LuthierError as error:
            trained = Path(f"runs/{path}/1/metrics.jsonl")
            late = trained.exists() and trained.stat().st_size > 0
            yield path, "late" if late else "refused", str(error)
        except Wrong as error:
            yield path, "wrong", str(error)
        except FileNotFoundError as error:
            yield path, "skipped", str(error)
        except Exception as error:
            yield path, "crash", detail(error)


def detail(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({Path(frame.filename).name}:{frame.lineno})"


def write_data() -> None:
    for file, shift in (("train", 0), ("test", 7)):
        lines = []
        for index, length in enumerate(LENGTHS):
            letters = "".join(LETTERS[(i * (index + 3) + shift + i * i) % 26] for i in range(length))
            lines.append({"prompt": f"q{index}{letters[: length // 2]}", "completion": f" {letters[::-1]}"})
        Path(f"{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        pairs = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": r["completion"][::-1]} for r in lines]
        Path(f"{file}-pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


def check_of(path: str) -> Callable[[], None]:
    if path in TUNERS:
        return lambda: trained(path, tuner=path)
    more = {"packed": {"layout": "packed"}, "bfloat16": {"dtype": "bfloat16"}}
    if path in more:
        return lambda: trained(path, **more[path])
    return {"merged": merged, "dpo": dpo, "sampling": sampling, "choices": choices}[path]


def run(name: str, **changes: Any) -> Path:
    """Run a recipe through the command line; returns its folder."""
    settings = {"dtype": "float32", "train": "train", "tuner": "full", "objective": "sft", "layout": "auto"}
    settings |= {"rate": RATE, "updates": UPDATES} | changes
    Path(f"{name}.yaml").write_text(RECIPE.format(**settings))
    try:
        app(["run", f"{name}.yaml"], standalone_mode=False)
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"exit code {stop.code}") from None
    return Path(f"runs/{name}/1")


def trained(name: str, **changes: Any) -> None:
    """A training: its losses against a plain loop, its evaluation against the saved model in transformers alone."""
    folder = run(name, **changes)
    dtype = getattr(torch, changes.get("dtype", "float32"))
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in metrics]
    precise = dtype == torch.float32
    if changes.get("tuner", "full") == "full" and precise and not zoo.has_dropout("model"):
        expected, again = plain_losses(seed=0), plain_losses(seed=1)
        # Some routers draw random numbers in the backward: then only the first loss is a number to compare with.
        known = 1 if max(abs(a - b) for a, b in zip(expected, again, strict=True)) > LOSS / 10 else UPDATES
        same("loss", torch.tensor(losses[:known]), torch.tensor(expected[:known]), LOSS)
    module = plain(folder / "model", dtype)
    for line in map(json.loads, (folder / "evaluation.jsonl").read_text().splitlines()):
        ids, start = tokens_of(line["prompt"], line["reference"])
        expected = -logprobs(module, ids)[start - 1 :].mean()
        same("saved model's evaluation", torch.tensor(line["score"]), expected, SAVED if precise else 0.25)


def merged() -> None:
    """The adapter of the path `lora`, merged by PEFT, equals base and adapter in plain PEFT; both as evaluated."""
    folder = Path("runs/lora/1")
    lines = [json.loads(line) for line in (folder / "evaluation.jsonl").read_text().splitlines()]
    recipe = Model(path=str((folder / "model").resolve()), dtype="float32")
    from luthier.models.loading.load import folded

    module = folded(load_model(recipe, Path())).module
    module.save_pretrained("merged")
    again = plain(Path("merged"), torch.float32)
    for line in lines:
        ids, start = tokens_of(line["prompt"], line["reference"])
        expected = -logprobs(again, ids)[start - 1 :].mean()
        same("merged model's evaluation", torch.tensor(line["score"]), expected, SAVED)


def dpo() -> None:
    """The first loss of dpo is ln 2: policy and reference are the same model; and its gradient is not 0."""
    folder = run("dpo", train="train-pairs", objective="dpo", tuner="lora", updates=1, rate=1e-4)
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    same("dpo's first loss", torch.tensor(first["loss"]), torch.tensor(2.0).log(), 1e-4)
    if not first["gradient_norm"] > 0:
        raise Wrong("no gradient reaches the adapter")


def sampling() -> None:
    """Greedy continuations of prompts of unequal length, read together, against a loop that reads all again."""
    module, _ = ours()
    reference = plain(Path("model"), torch.float32)
    prompts = [tokens_of(record["prompt"], record["completion"])[0][: 4 + 5 * i] for i, record in enumerate(records())]
    requests = [Request(prompt, str(index)) for index, prompt in enumerate(prompts)]
    # No end token: all continuations take all tokens.
    trajectories = NativeSampler(module, set(), batch=len(prompts))(requests, Sampling(6, 0.0))
    for prompt, trajectory in zip(prompts, trajectories, strict=True):
        for index, token in enumerate(trajectory.ids):
            # From the text so far: some models read it otherwise within a longer text.
            ids = [*prompt, *trajectory.ids[:index]]
            with torch.no_grad():
                last = reference(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()
            same("greedy token's distance from the likeliest", last[token], last.max(), LOGPROB)
            expected = last.log_softmax(-1)[token]
            same("log-probabilities of samples", torch.tensor(trajectory.logprobs[index]), expected, LOGPROB)


def choices() -> None:
    """Choices of one to four tokens behind prompts of unequal length."""
    module, _ = ours()
    reference = plain(Path("model"), torch.float32)
    prompts = [tokens_of(record["prompt"], "x")[0][: 3 + 4 * i] for i, record in enumerate(records())]
    options = [[10 + i, 30, 50 + i, 70][:size] for i, size in enumerate((1, 2, 3, 4))]
    scores = choice_logprobs(module, prompts, [options] * len(prompts), batch=len(prompts))
    for prompt, row in zip(prompts, scores, strict=True):
        expected = [logprobs(reference, [*prompt, *option])[len(prompt) - 1 :].sum() for option in options]
        same("log-probabilities of choices", torch.tensor(row), torch.stack(expected), 2 * LOGPROB)


def causal() -> bool:
    """Whether the logits of a row stay where only its last token changes."""
    ids, _ = tokens_of(records()[-1]["prompt"], "x")
    changed = [*ids[:-1], ids[0]]
    module = plain(Path("model"), torch.float32)
    with torch.no_grad():
        rows = [module(input_ids=torch.tensor([row]), use_cache=False).logits[0, :-1] for row in (ids, changed)]
    return bool((rows[0] - rows[1]).abs().max() < 1e-3)


def records() -> list[dict[str, str]]:
    return [json.loads(line) for line in Path("test.jsonl").read_text().splitlines()]


def ours() -> tuple[Any, Any]:
    loaded = load_model(Model(path=str(Path("model").resolve()), dtype="float32"), Path())
    return loaded.module, loaded.tokenizer


def plain(folder: Path, dtype: torch.dtype) -> Any:
    """The model of a folder as transformers or PEFT load it."""
    if (folder / "adapter_config.json").exists():
        from peft import PeftModel

        base = transformers.AutoModelForCausalLM.from_pretrained("model", dtype=dtype)
        return PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False).eval()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def tokens_of(prompt: str, completion: str) -> tuple[list[int], int]:
    """Token ids of a record with its end token, and the index of the first token that is learned."""
    tokenizer = load_tokenizer(Model(path=str(Path("model").resolve())), Path())
    # A space joins the word behind it.
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = tokenizer(prompt + completion, add_special_tokens=False)["input_ids"]
    assert ids[: len(before)] == before
    return [*ids, tokenizer.eos_token_id], len(before)


def logprobs(module: Any, ids: list[int]) -> Tensor:
    """Log-probabilities [T-1] of the tokens from the second on, of one row alone."""
    row = torch.tensor([ids])
    with torch.no_grad():
        logits = module(input_ids=row, use_cache=False).logits[0].float()
    return logits.log_softmax(-1)[:-1].gather(1, row[0, 1:, None])[:, 0]


def plain_losses(seed: int) -> list[float]:
    """Losses of the same updates by transformers and torch alone, one record per forward."""
    torch.manual_seed(seed)
    module = plain(Path("model"), torch.float32)
    module.train()
    lines = [json.loads(line) for line in Path("train.jsonl").read_text().splitlines()]
    rows = [tokens_of(line["prompt"], line["completion"]) for line in lines]
    targets = sum(len(ids) - start for ids, start in rows)
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    for _ in range(UPDATES):
        total = 0.0
        for ids, start in rows:
            logits = module(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
            loss = torch.nn.functional.cross_entropy(logits[start - 1 : -1], torch.tensor(ids[start:]), reduction="sum")
            (loss / targets).backward()
            total += float(loss.detach()) / targets
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def same(what: str, measured: Tensor, expected: Tensor, tolerance: float) -> None:
    difference = float((measured.double() - expected.double()).abs().max())
    # Not a number is no agreement.
    if not difference <= tolerance * max(1.0, float(expected.abs().max())):
        raise Wrong(f"{what}: off by {difference:.2g}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    main()
