"""Checks of whatever trains: the gradient under any batching, ranks, resume, determinism, bfloat16, no targets."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import torch
from torch import Tensor, nn

from luthier import parts
from luthier.conformance.base import Failed, apart
from luthier.conformance.needs_of import rows_for
from luthier.conformance.ranks import Meeting, Peer
from luthier.conformance.tiny import RECORDS, tiny_model_of, with_common_prompts, with_random_fields, with_streams
from luthier.engine.assemble import Parts, tuned_policy
from luthier.engine.budget import Budget
from luthier.engine.checkpoints import Saving
from luthier.engine.micro_batches import Batching
from luthier.engine.optimizers.base import Optimizer
from luthier.engine.source import Records
from luthier.engine.trainer import Trainer
from luthier.errors import RunError
from luthier.models.policy import TokenPolicy
from luthier.objectives.base import Objective
from luthier.tuners.base import TunerInputs
from luthier.types import Row

LAYOUTS = {
    "four records per forward": Batching(RECORDS, 60, "padded"),
    "one record per forward": Batching(RECORDS, 1, "padded"),
    "padding on the left": Batching(RECORDS, 10_000, "padded", "left"),
    "packed": Batching(RECORDS, 10_000, "packed"),
    "packed in pieces": Batching(RECORDS, 40, "packed"),
}
TOLERANCE = 1e-9
SHARING_TOLERANCE = 1e-5
"""With a shared prompt the rows' gradients are summed before they pass the norms, which transformers computes in
float32."""


class GradientDescent(Optimizer):
    """Gradient descent at rate 1: the change of the weights *is* the gradient."""

    lr: float = 1.0
    clip: float | None = None

    def make(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.lr)


def trainer(objective: Objective, tuner: Any, rows: list[Row], batching: Batching, **more: Any) -> Trainer:
    """A trainer of the tiny model of the objective's modality with these parts.

    Args:
        more: `optimizer` (default: gradient descent at rate 1), `schedule`, `selector`, `budget` (one update), `dtype`
            of the model (float64), `disturb`: False starts from the tuner's own weights; other fields of `Trainer`.
    """
    dtype = more.pop("dtype", torch.float64)
    seed = more.get("seed", 0)
    modality = tiny_model_of(objective)
    rows = with_random_fields(rows, tuner.fields)
    constant = parts.build("schedule", "constant")
    optimizer, schedule = more.pop("optimizer", GradientDescent()), more.pop("schedule", constant)
    chosen = Parts(objective, (tuner,), optimizer, schedule, more.pop("selector", None))
    policy = tuned_policy(modality.module(dtype, 0), chosen, TunerInputs(seed, rows), make=modality.policy)
    if more.pop("disturb", True):
        _disturb(policy)
    streams = [column for column in chosen.needs.reads if not column.startswith("logits:")]
    source = Records(with_streams(rows, streams), seed, more.pop("budget", Budget("updates", 1)))
    return Trainer(policy, chosen, source, batching, **more)


def _disturb(policy: Any) -> None:
    """Add noise to the trained weights: at their start a zero adapter, or a zero divergence, would hide faults."""
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


def weights_of(run: Trainer) -> dict[str, Tensor]:
    """A copy of the trained weights by name, in the precision of the optimiser."""
    return {name: master.detach().clone() for name, master in run.masters.master.items()}


def trained(objective: Objective, tuner: Any, batching: Batching, rows: list[Row] | None = None, **more: Any) -> dict:
    """The change of every trained weight by a training, by name; with the defaults minus the gradient."""
    run = trainer(objective, tuner, rows or rows_for(objective), batching, **more)
    before = weights_of(run)
    run.train()
    return {name: after - before[name] for name, after in weights_of(run).items()}


def check_invariance(objectives: list[Objective], tuner: Any) -> None:
    """The gradient does not depend on splits, padding side or packing."""
    for objective in objectives:
        one_batch = trained(objective, tuner, Batching(RECORDS, 10_000, "padded"))
        if not any(float(t.abs().max()) for t in one_batch.values()):
            raise Failed(f"{objective!r}: the gradient is zero everywhere")
        for name, batching in LAYOUTS.items():
            error = apart(one_batch, trained(objective, tuner, batching))
            if not error <= TOLERANCE:
                raise Failed(
                    f"{objective!r}: with {name} the gradient differs by {error:.1e} (allowed {TOLERANCE:.0e})."
                    " Does the loss use a mean over the chunk, or anything but its own position?"
                )
        # Only rows of tokens have prompts, and a part that reads whole rows refuses the layout.
        if tiny_model_of(objective).policy is TokenPolicy and not (objective.WHOLE_ROWS or tuner.WHOLE_ROWS):
            check_sharing(objective, tuner)


def check_splits(objectives: list[Objective]) -> None:
    """As `check_invariance`, each objective with `tuner_for` it."""
    for objective in objectives:
        check_invariance([objective], tuner_for(objective))


def tuner_for(objective: Objective) -> Any:
    """The tuner that an objective is tried with: full fine-tuning, unless it needs an adapter."""
    return parts.build("tuner", "lora" if objective.needs_adapter else "full")


def check_sharing(objective: Objective, tuner: Any) -> None:
    """The gradient does not depend on whether a common prompt is computed once or for each answer."""
    rows = rows_for(objective)
    # Records of several rows, such as pairs, share their prompt already.
    rows = rows if any(row.record != row.id for row in rows) else with_common_prompts(rows)
    padded = trained(objective, tuner, Batching(RECORDS, 10_000, "padded"), rows)
    shared = trained(objective, tuner, Batching(RECORDS, 10_000, "shared"), rows)
    error = apart(padded, shared)
    if not error <= SHARING_TOLERANCE:
        raise Failed(
            f"{objective!r}: with a prompt that is shared the gradient differs by {error:.1e} (allowed"
            f" {SHARING_TOLERANCE:.0e}). Does it read positions that are no targets? Then write WHOLE_ROWS = True."
        )


def now_and_later(objective: Objective, tuner: Any, batching: Batching) -> dict[str, Tensor]:
    """The change by one large update, and by four small ones: an option may act only once weights have moved."""
    later = {f"later/{name}": change for name, change in some_updates(objective, tuner).items()}
    return trained(objective, tuner, batching) | later


def check_determinism(objective: Objective, tuner: Any, optimizer: Any = None) -> None:
    """The same seed gives the same bits."""
    first, second = (some_updates(objective, tuner, optimizer) for _ in range(2))
    if any(not torch.equal(first[name], second[name]) for name in first):
        raise Failed("two runs with one seed differ: is there a random call other than view.uniform?")


def some_updates(objective: Objective, tuner: Any, optimizer: Any = None) -> dict[str, Tensor]:
    """The change of the weights in four small updates, by adamw unless another optimiser is passed."""
    small = Batching(3, 40, "padded")
    return trained(objective, tuner, small, budget=Budget("updates", 4), optimizer=optimizer or _adamw())


def _adamw() -> Optimizer:
    return parts.build("optimizer", {"kind": "adamw", "lr": 1e-3})


def check_resume(objective: Objective, tuner: Any, optimizer: Any = None) -> None:
    """Stopped after two updates and resumed in a new trainer, the weights are bit-identical after four."""
    with tempfile.TemporaryDirectory() as folder:

        def make(saving: Saving | None, stop: Callable[[], bool]) -> Trainer:
            return trainer(
                objective,
                tuner,
                rows_for(objective),
                Batching(3, 40, "padded"),
                budget=Budget("updates", 4),
                optimizer=optimizer or _adamw(),
                saving=saving,
                stop_requested=stop,
            )

        unstopped = make(None, lambda: False)
        unstopped.train()
        saving = Saving(Path(folder))
        calls = iter((False, True))  # it stops after two updates
        make(saving, lambda: next(calls)).train()
        resumed = make(saving, lambda: False)
        resumed.resume()
        resumed.train()
    for name, master in unstopped.masters.master.items():
        if not torch.equal(master, resumed.masters.master[name]):
            raise Failed(f"after a resume, {name} differs: is there state outside `start()`?")


def check_bfloat16(objective: Objective, tuner: Any) -> None:
    """In bfloat16 compute over fp32 masters, weights stay finite."""
    change = trained(objective, tuner, Batching(3, 40, "padded"), dtype=torch.bfloat16, budget=Budget("updates", 2))
    if not all(bool(torch.isfinite(t).all()) for t in change.values()):
        raise Failed("weights are not finite after two updates in bfloat16")


def check_zero_targets(objective: Objective, tuner: Any) -> None:
    """An update without any target raises RunError."""
    try:
        trained(objective, tuner, Batching(RECORDS, 10_000, "padded"), rows=rows_for(objective, targets=False))
    except RunError:
        return
    raise Failed("an update without targets went through")


def check_ranks(objective: Objective, tuner: Any) -> None:
    """Two ranks that divide an update's micro-batches both take the step that one process takes."""
    batching = Batching(RECORDS, 40, "padded")
    one_process = trained(objective, tuner, batching)
    meeting = Meeting(2)
    rows = rows_for(objective)
    runs = [trainer(objective, tuner, rows, batching, world=Peer(rank, 2, meeting)) for rank in range(2)]
    starts = [weights_of(run) for run in runs]
    with ThreadPoolExecutor(2) as pool:
        pending = [pool.submit(meeting.attend, run.train) for run in runs]
    errors = [error for future in pending if (error := future.exception()) is not None]
    if errors:  # the cause rather than the broken barrier of the rank that waited for it
        raise next((error for error in errors if not isinstance(error, BrokenBarrierError)), errors[0])
    for run, start in zip(runs, starts, strict=True):
        error = apart(one_process, {name: after - start[name] for name, after in weights_of(run).items()})
        if not error <= TOLERANCE:
            raise Failed(f"on two ranks the gradient differs by {error:.1e} (allowed {TOLERANCE:.0e})")
