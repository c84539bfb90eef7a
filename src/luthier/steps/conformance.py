"""The conformance matrix of one part: what every part of a slot of CHECKS must pass; on a tiny model where one trains.

`luthier check ./mine.py` runs it on a file of the user's; the tests run it on every part of the package.
Each check is a function that returns None or raises `Failed` with what was seen.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import numpy
import torch
from rich.console import Console
from torch import Tensor, nn

from luthier import parts
from luthier.data.pairs import rows_of_record
from luthier.engine.budget import Budget
from luthier.engine.source import Records
from luthier.engine.trainer import Batching, Saving, Trainer
from luthier.errors import LuthierError, RunError
from luthier.modalities.base import tuned_policy
from luthier.models.loading.load import quiet
from luthier.models.policy import TokenPolicy
from luthier.objectives.base import Objective, judgement_of, members_of, reads_of
from luthier.recipe.methods import slot_of_file
from luthier.steps.conformance_ranks import Meeting, Peer
from luthier.steps.faces import TINY_MODELS, TinyModel
from luthier.steps.made import with_common_prompts
from luthier.tuners.base import Planning
from luthier.types import Row, Stream

VOCABULARY, RECORDS = 61, 8
LAYOUTS = {
    "four records per forward": Batching(RECORDS, 60, "padded"),
    "one record per forward": Batching(RECORDS, 1, "padded"),
    "padding on the left": Batching(RECORDS, 10_000, "padded", "left"),
    "packed": Batching(RECORDS, 10_000, "packed"),
    "packed in pieces": Batching(RECORDS, 40, "packed"),
}
TOLERANCE = 1e-9
SHARING_TOLERANCE = 1e-5
"""A shared prompt's gradients are added before the norms of transformers' models, which compute in float32."""


Checks = Callable[[type[Any]], Iterator[tuple[str, Callable[[], None]]]]
"""A part → the checks of its slot by name, in the order they are run."""


class Failed(Exception):
    """A check found the part wanting; the message says what was seen."""


@dataclass(frozen=True)
class CheckOutcome:
    """One line of the matrix."""

    check: str
    passed: bool
    seen: str


class Plain(parts.Part):
    """Gradient descent at rate 1: the change of the weights *is* the gradient."""

    lr: float = 1.0
    clip: float | None = None

    def make(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.lr)


def tiny_model(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """A Llama with 2 layers, width 32 and tied embeddings, the same for the same seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
        return model.to(dtype=dtype).eval()


def tiny_rows(count: int = RECORDS, seed: int = 0, targets: bool = True) -> list[Row]:
    """Records of unequal length; the first tokens of each are its prompt, weights are not all 1."""
    draw = numpy.random.default_rng(seed)
    rows = []
    for index in range(count):
        length = int(draw.integers(6, 22))
        weights = numpy.where(draw.random(length) < 0.3, 0.5, 1.0).astype(numpy.float32)
        weights[: int(draw.integers(1, 5))] = 0.0
        ids = draw.integers(0, VOCABULARY, length).astype(numpy.int32)
        rows.append(Row(f"record-{index}", ids, {"weights": Stream(weights * targets, "token", 0.0)}))
    return rows


def tiny_pairs(count: int = RECORDS, seed: int = 0, targets: bool = True) -> list[Row]:
    """Preference pairs: two continuations of one prompt, of unequal length."""
    draw = numpy.random.default_rng(seed)
    rows: list[Row] = []
    for index in range(count):
        prompt = draw.integers(0, VOCABULARY, int(draw.integers(2, 6)))
        sides = []
        for _ in range(2):
            answer = draw.integers(0, VOCABULARY, int(draw.integers(3, 12)))
            weights = numpy.repeat(numpy.array([0.0, targets], numpy.float32), [len(prompt), len(answer)])
            ids = numpy.concatenate([prompt, answer]).astype(numpy.int32)
            sides.append(Row("", ids, {"weights": Stream(weights, "token")}))
        rows += rows_of_record(f"record-{index}", sides)
    return rows


def tiny_labelled(count: int = RECORDS, seed: int = 0, targets: bool = True) -> list[Row]:
    """Records of one answer each, which every second of them says to be a good one."""
    rows = tiny_rows(count, seed, targets)
    return [row for place, one in enumerate(rows) for row in rows_of_record(one.id, [one], label=place % 2 == 0)]


def rows_for(objective: Objective, targets: bool = True) -> list[Row]:
    """Tiny data of the kind that the objective NEEDS."""
    needed = judgement_of(objective)
    if needed == "pairs":
        return tiny_pairs(targets=targets)
    if needed == "labels":
        return tiny_labelled(targets=targets)
    return tiny_model_of(objective).rows(RECORDS, 0) if targets else tiny_rows(targets=False)


def with_streams(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The rows with made-up values for token streams that they lack, such as a rollout would bring.

    Log-probabilities lie around those of a uniform distribution, other values around 0.
    """
    filled = []
    for index, row in enumerate(rows):
        made = dict(row.streams)
        for name in names:
            draw = numpy.random.default_rng([index, *name.encode()])
            centre = -math.log(VOCABULARY) if "logprobs" in name else 0.0
            values = draw.normal(centre, 0.5, len(row)).astype(numpy.float32)
            made.setdefault(name, Stream(values, "token"))
        filled.append(replace(row, streams=made))
    return filled


def with_made_fields(rows: list[Row], names: Sequence[str]) -> list[Row]:
    """The rows with made-up columns of the data, 0 or 1, as a tuner reads them."""
    for name in names:
        types = numpy.random.default_rng([*name.encode()]).integers(0, 2, len(rows)).astype(numpy.float32)
        made = {row.id: Stream(value, "row") for row, value in zip(rows, types, strict=True)}
        rows = [replace(row, streams={**row.streams, f"field:{name}": made[row.id]}) for row in rows]
    return rows


def trainer(objective: Objective, tuner: Any, rows: list[Row], batching: Batching, **more: Any) -> Trainer:
    """A trainer of the tiny model of the objective's modality with these parts; `more` overrides its fields."""
    dtype = more.pop("dtype", torch.float64)
    seed = more.get("seed", 0)
    modality = tiny_model_of(objective)
    rows = with_made_fields(rows, tuner.fields)
    policy = tuned_policy(modality.module(dtype, 0), [tuner], objective, Planning(seed, rows), make=modality.policy)
    if more.pop("disturb", True):
        _disturb(policy)
    streams = [read for read in reads_of(objective) if not read.startswith("logits:")]
    source = Records(with_streams(rows, streams), seed, more.pop("budget", Budget("updates", 1)))
    defaults: dict[str, Any] = {"optimizer": Plain(), "schedule": parts.build("schedule", "constant")}
    return Trainer(policy, [tuner], objective, source, batching=batching, **(defaults | more))


def tiny_model_of(objective: Objective) -> TinyModel:
    """The tiny workspace that an objective is tried on."""
    name = members_of(objective)[0].MODALITY
    return TinyModel(tiny_model, TokenPolicy, tiny_rows) if name == "language" else TINY_MODELS[name]


def _disturb(policy: Any) -> None:
    """Move the trained weights off their start, where a zero adapter or a zero divergence would hide faults."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in _trained(policy):
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter += 0.05 * noise.to(parameter.dtype)


def _trained(policy: TokenPolicy) -> Iterator[nn.Parameter]:
    yield from policy.module.parameters()
    for companion in policy.companions.values():
        yield from companion.module.parameters()


def trained(objective: Objective, tuner: Any, batching: Batching, rows: list[Row] | None = None, **more: Any) -> dict:
    """Weights after training, by name, minus weights before."""
    run = trainer(objective, tuner, rows or rows_for(objective), batching, **more)
    before = {name: p.detach().clone() for name, p in run.masters.master.items()}
    run.train()
    return {name: (p.detach() - before[name]) for name, p in run.masters.master.items()}


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Largest relative difference over tensors."""
    largest = max(float(t.norm()) for t in one.values())
    return max(float((one[n] - other[n]).norm()) / max(float(one[n].norm()), 1e-6 * largest, 1e-300) for n in one)


def variants(part: type[Any]) -> list[Any]:
    """The part under each of its SETTINGS."""
    return [part(**settings) for settings in part.SETTINGS]


def check_invariance(objectives: list[Objective], tuner: Any) -> None:
    """The gradient does not depend on splits, padding side or packing."""
    for objective in objectives:
        whole = trained(objective, tuner, Batching(RECORDS, 10_000, "padded"))
        if not any(float(t.abs().max()) for t in whole.values()):
            raise Failed(f"{objective!r}: the gradient is zero everywhere")
        for name, batching in LAYOUTS.items():
            error = apart(whole, trained(objective, tuner, batching))
            if not error <= TOLERANCE:
                raise Failed(
                    f"{objective!r}: with {name} the gradient differs by {error:.1e} (allowed {TOLERANCE:.0e})."
                    " Does the loss use a mean over the chunk, or anything but its own position?"
                )
        if tiny_model_of(objective).policy is TokenPolicy and not (objective.WHOLE_ROWS or tuner.WHOLE_ROWS):
            check_sharing(objective, tuner)


def check_splits(objectives: list[Objective]) -> None:
    """As `check_invariance`, each objective under the tuner that it is tried with."""
    for objective in objectives:
        check_invariance([objective], tuner_for(objective))


def tuner_for(objective: Objective) -> Any:
    """What an objective is tried with: full fine-tuning, unless it needs an adapter."""
    return parts.build("tuner", "lora" if objective.needs_adapter else "full")


def check_sharing(objective: Objective, tuner: Any) -> None:
    """The gradient does not depend on whether answers read their common prompt once or each for itself."""
    rows = rows_for(objective)
    rows = rows if judgement_of(objective) == "pairs" else with_common_prompts(rows)
    apiece, together = (
        trained(objective, tuner, Batching(RECORDS, 10_000, layout), rows) for layout in ("padded", "shared")
    )
    error = apart(apiece, together)
    if not error <= SHARING_TOLERANCE:
        raise Failed(
            f"{objective!r}: with a prompt that is shared the gradient differs by {error:.1e} (allowed"
            f" {SHARING_TOLERANCE:.0e}). Does it look at positions that are no targets? Then write WHOLE_ROWS = True."
        )


def check_options(made: list[Any], result: Callable[[Any], dict], besides: Collection[str] = ()) -> None:
    """Every option changes the result from one of the SETTINGS, besides those that the part itself does not read."""
    part = type(made[0])
    results = [result(one) for one in made]
    silent = set(part.model_fields) - set(besides)
    for i, one in enumerate(made):
        for j in range(i):
            differing = {name for name in silent if getattr(one, name) != getattr(made[j], name)}
            if len(differing) == 1 and (
                results[i].keys() != results[j].keys()
                or any(a.shape != b.shape for a, b in zip(results[i].values(), results[j].values(), strict=True))
                or apart(results[i], results[j]) > 1e-12
            ):
                silent -= differing
    if silent:
        raise Failed(
            f"no two SETTINGS that differ only in `{sorted(silent)[0]}` give different results: the option is not read,"
            " or SETTINGS lacks a set that shows it"
        )


def _now_and_later(objective: Objective, tuner: Any, batching: Batching) -> dict[str, Tensor]:
    """After one whole update, and after four small ones: an option may act only once weights have moved."""
    later = {f"later/{name}": change for name, change in _some_updates(objective, tuner).items()}
    return trained(objective, tuner, batching) | later


def check_determinism(objective: Objective, tuner: Any) -> None:
    """The same seed gives the same bits."""
    one, two = (_some_updates(objective, tuner) for _ in range(2))
    if any(not torch.equal(one[name], two[name]) for name in one):
        raise Failed("two runs with one seed differ: is there a random call other than view.uniform?")


def _some_updates(objective: Objective, tuner: Any) -> dict[str, Tensor]:
    small = Batching(3, 40, "padded")
    adamw = parts.build("optimizer", {"kind": "adamw", "lr": 1e-3})
    return trained(objective, tuner, small, budget=Budget("updates", 4), optimizer=adamw)


def check_resume(objective: Objective, tuner: Any) -> None:
    """Stopped after two updates and resumed in a new trainer, the weights are bit-identical after four."""
    adamw = parts.build("optimizer", {"kind": "adamw", "lr": 1e-3})
    with tempfile.TemporaryDirectory() as folder:

        def make(saving: Saving | None, stop: Callable[[], bool]) -> Trainer:
            return trainer(
                objective,
                tuner,
                rows_for(objective),
                Batching(3, 40, "padded"),
                budget=Budget("updates", 4),
                optimizer=adamw,
                saving=saving,
                stop_requested=stop,
            )

        whole = make(None, lambda: False)
        whole.train()
        saving = Saving(Path(folder))
        calls = iter((False, True))
        make(saving, lambda: next(calls)).train()
        again = make(saving, lambda: False)
        again.resume()
        again.train()
    for name, master in whole.masters.master.items():
        if not torch.equal(master, again.masters.master[name]):
            raise Failed(f"after a resume, {name} differs: is there state outside `start()`?")


def check_bfloat16(objective: Objective, tuner: Any) -> None:
    """In bfloat16 compute over fp32 masters, weights stay finite."""
    change = trained(objective, tuner, Batching(3, 40, "padded"), dtype=torch.bfloat16, budget=Budget("updates", 2))
    if not all(bool(torch.isfinite(t).all()) for t in change.values()):
        raise Failed("weights are not finite after two updates in bfloat16")


def check_zero_targets(objective: Objective, tuner: Any) -> None:
    """An update without any target is refused in words."""
    try:
        trained(objective, tuner, Batching(RECORDS, 10_000, "padded"), rows=rows_for(objective, targets=False))
    except RunError:
        return
    raise Failed("an update without targets went through")


def check_ranks(objective: Objective, tuner: Any) -> None:
    """Two ranks, that share an update's micro-batches, both take the step of one process."""
    batching = Batching(RECORDS, 40, "padded")
    whole = trained(objective, tuner, batching)
    meeting = Meeting(2)
    rows = rows_for(objective)
    runs = [trainer(objective, tuner, rows, batching, world=Peer(rank, 2, meeting)) for rank in range(2)]
    starts = [{name: p.detach().clone() for name, p in run.masters.master.items()} for run in runs]
    with ThreadPoolExecutor(2) as pool:
        pending = [pool.submit(meeting.attend, run.train) for run in runs]
    errors = [error for one in pending if (error := one.exception()) is not None]
    if errors:
        raise next((error for error in errors if not isinstance(error, BrokenBarrierError)), errors[0])
    for run, start in zip(runs, starts, strict=True):
        error = apart(whole, {name: p.detach() - start[name] for name, p in run.masters.master.items()})
        if not error <= TOLERANCE:
            raise Failed(f"on two ranks the gradient differs by {error:.1e} (allowed {TOLERANCE:.0e})")


def objective_checks(part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of an objective, in the order they are run."""
    from luthier.steps.conformance_derivative import check_derivative, check_targets

    full = parts.build("tuner", "full")
    made = variants(part)
    first = made[0]
    yield "gradient: splits, padding side, packing", lambda: check_splits(made)
    yield "gradient: two ranks", lambda: check_ranks(first, full)
    yield "gradient: derivative of the loss, but for what it HOLDS", lambda: check_derivative(first, full)
    whole = Batching(RECORDS, 10_000, "padded")
    yield (
        "every option changes something",
        lambda: check_options(made, lambda one: _now_and_later(one, tuner_for(one), whole)),
    )
    yield "deterministic by seed", lambda: check_determinism(first, full)
    yield "exact resume", lambda: check_resume(first, full)
    yield "bfloat16 stays finite", lambda: check_bfloat16(first, full)
    if first.MODALITY == "language":  # a record of another modality is its own target
        yield "gradient: of every target, of nothing behind", lambda: check_targets(first, full)
        yield "no targets: refused", lambda: check_zero_targets(first, full)
    for name in ("full", "lora"):
        yield f"composes with {name}", lambda name=name: check_resume(first, parts.build("tuner", name))


def tuner_checks(part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of a tuner."""
    from luthier.steps.conformance_saved import check_save_and_load

    sft = parts.build("objective", "sft")
    made = variants(part)
    yield "gradient: splits, padding side, packing", lambda: check_invariance([sft], made[0])
    yield "gradient: two ranks", lambda: check_ranks(sft, made[0])
    yield "every option changes something", lambda: check_options(made, lambda one: _some_updates(sft, one))
    yield "deterministic by seed", lambda: check_determinism(sft, made[0])
    yield "exact resume", lambda: check_resume(sft, made[0])
    yield "bfloat16 stays finite", lambda: check_bfloat16(sft, made[0])
    yield "saved, loaded, merged: same logits", lambda: check_save_and_load(made[0])
    for name in ("dft", "asft"):
        yield f"composes with {name}", lambda name=name: check_resume(parts.build("objective", name), made[0])


def _checks_in(slot: str) -> Checks:
    """The checks of a slot that has a file of its own, which imports this one."""

    def found(part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
        from luthier.steps import (
            conformance_advantages,
            conformance_rewards,
            conformance_selectors,
            conformance_strategies,
            conformance_subsets,
        )

        files = {
            "selector": conformance_selectors,
            "advantage": conformance_advantages,
            "reward": conformance_rewards,
            "strategy": conformance_strategies,
            "subset": conformance_subsets,
        }
        return files[slot].checks(part)

    return found


CHECKS: dict[str, Checks] = {
    "objective": objective_checks,
    "tuner": tuner_checks,
    "selector": _checks_in("selector"),
    "advantage": _checks_in("advantage"),
    "reward": _checks_in("reward"),
    "strategy": _checks_in("strategy"),
    "subset": _checks_in("subset"),
}


def run_checks(slot: str, part: type[Any]) -> Iterator[CheckOutcome]:
    """Run every check; an error of the part itself is an outcome too."""
    for name, check in CHECKS[slot](part):
        try:
            check()
        except Failed as failure:
            yield CheckOutcome(name, False, str(failure))
        except LuthierError as error:
            yield CheckOutcome(name, False, str(error))
        except Exception as error:
            yield CheckOutcome(name, False, parts.told(error))
        else:
            yield CheckOutcome(name, True, "")


def check_part(path: Path, console: Console) -> None:
    """Run the matrix on a part file and print each outcome.

    Raises:
        RunError: something failed.
    """
    slot = slot_of_file(path)
    if slot not in CHECKS:
        raise RunError(f"{path.name} is a {slot}: the matrix covers {', '.join(f'{one}s' for one in CHECKS)}.")
    part = parts.load(slot, str(path))
    quiet()
    failed = 0
    for outcome in run_checks(slot, part):
        console.print(f"  {'[green]pass[/]' if outcome.passed else '[red]FAIL[/]'}  {outcome.check}")
        if not outcome.passed:
            failed += 1
            console.print(f"        {outcome.seen}", style="red", markup=False, highlight=False)
    if failed:
        raise RunError(f"{part.__name__} fails {failed} check(s) of the matrix.")
    console.print(f"{part.__name__} passes the matrix.")
