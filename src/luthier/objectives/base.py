"""The family of objectives: what an update offers them and what they give back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from luthier import parts
from luthier.errors import RecipeError
from luthier.objectives._draws import position_keys
from luthier.objectives._view import MicroBatchTargets, TokenView
from luthier.parts import Part, lazy
from luthier.types import Batch, Row, Term

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from luthier.models.kernels import head as heads
    from luthier.models.policy import Companion, TokenPolicy
else:
    torch = lazy("torch")
    heads = lazy("luthier.models.kernels.head")


@dataclass
class Update:
    """One update as objectives and tuners see it.

    `rows` are all of the update's, the same on every rank whatever the cut; `batches` are this rank's share of those
    that may move the model, `still` of those that do not (`Objective.moves`): counted, and read by no forward.
    `counts` are global (all micro-batches, all ranks) and known before the first backward; `progress` is the middle of
    this update's share of the budget, 0 to 1, and `done` its end. Tuners find a parameter's complete, unclipped
    gradient by `gradient(name)` and what the optimiser keeps for it by `optimizer_state(name)`. `prepared`
    holds what a part's `prepare` left, by the part's id; `sum_tensors` sums over ranks, in place. Of coupled
    objectives: `pulls`, the loss's gradient with respect to their features, and `repeatable(batch)`, in which dropout
    draws the same again.
    """

    index: int
    seed: int
    progress: float = 0.0
    done: float = 0.0
    rows: Sequence[Row] = ()
    batches: Sequence[Batch] = ()
    still: Sequence[Batch] = ()
    counts: dict[str, float] = field(default_factory=dict)
    meters: dict[str, list[Any]] = field(default_factory=dict)
    states: dict[int, Any] = field(default_factory=dict)
    gradient: Callable[[str], Tensor | None] = lambda name: None
    optimizer_state: Callable[[str], dict[str, Any]] = lambda name: {}
    prepared: dict[int, Any] = field(default_factory=dict)
    sum_tensors: Callable[[Iterable[Tensor]], None] = lambda tensors: None
    pulls: dict[int, dict[int, dict[str, Tensor]]] = field(default_factory=dict)
    repeatable: Callable[[Batch], AbstractContextManager[Any]] = nullcontext

    def state_of(self, part: Part) -> Any:
        """What `part.start(policy)` returned; it travels with the checkpoints."""
        return self.states[id(part)]

    def meter(self, name: str, total: Any, unit: str) -> None:
        """Add to a diagnostic that is reported as total / counts[unit]; reduced over ranks like a term.

        A tensor's value is read when the update is reported: on a GPU reading it here would wait for the whole forward.
        """
        value = total.detach().double() if hasattr(total, "detach") else float(total)
        self.meters.setdefault(name, [unit, 0.0])[1] += value


class Objective(Part):
    """A loss over batches. Verbs: `units`, `terms`; hooks: `prepare`, `scope`, `update_terms`, `after_step`.

    MODALITY names the kind of policy that it is given: "token", "contrastive" or "diffusion". NEEDS names what its data
    must have: "pairs" (of a chosen and a rejected answer) or "labels" (each answer said to be good or bad; those of
    pairs are); without it such data give their good answers alone.
    HOLDS names what the loss takes as constant although it depends on the weights (a detached weight), under the first
    of SETTINGS; an objective without it has a gradient that is the derivative of its loss. WHOLE_ROWS says that it
    looks at positions that are no targets: its records then never share a prompt in a batch. READS_TARGETS = False says
    that it looks at the distributions at its targets and never asks which token stands there.
    """

    MODALITY: ClassVar[str] = "language"
    READS: ClassVar[tuple[str, ...]] = ()
    HOLDS: ClassVar[tuple[str, ...]] = ()
    UNIT: ClassVar[str] = "targets"
    WHOLE_ROWS: ClassVar[bool] = False
    READS_TARGETS: ClassVar[bool] = True

    @property
    def unit(self) -> str:
        """What the loss is divided by: UNIT, unless an option chooses."""
        return self.UNIT

    @property
    def reads(self) -> tuple[str, ...]:
        """The streams and references that it needs: READS, unless options choose."""
        return self.READS

    @property
    def needs_adapter(self) -> bool:
        """Whether it needs a tuner that adds a low-rank adapter; False, unless options choose."""
        return False

    def units(self, batch: Batch) -> dict[str, float]:
        """Counts that terms may be divided by, from ids and streams only; without tokens there are records alone."""
        if "weights" not in batch.streams:
            return {"records": float(len(batch.examples))}
        rows, columns = batch.targets()
        weights = batch.weights[rows, columns]
        return {
            "targets": float(len(rows)),
            "weights": float(weights.double().sum()),
            "records": float(_records(batch, batch.example_of[rows, columns].unique().tolist())),
        }

    def moves(self, row: Row) -> bool:
        """Hook: False for a row whose loss has no gradient whatever the model says: it is counted and not read."""
        return True

    def terms(self, policy: Any, batch: Batch, update: Update) -> list[Term]:
        """The summands of this micro-batch's loss."""
        raise RecipeError(
            f"{type(self).__name__} has no loss: write `token_loss` (TokenObjective), `sequence_loss`"
            " (SequenceObjective) or `terms`."
        )

    def companions(self, policy: Any) -> dict[str, Companion]:
        """Hook: modules to train beside the model, by name; made before the optimiser."""
        return {}

    def start(self, policy: Any) -> Any:
        """Hook: mutable state, or None. It needs `state_dict() -> {name: Tensor}` and `load_state_dict`."""
        return None

    def prepare(self, policy: Any, update: Update) -> None:
        """Hook: look at all micro-batches of the update before the first training forward."""

    def scope(self, policy: Any, batch: Batch, update: Update) -> AbstractContextManager[Any]:
        """Hook: a context around forward and backward of one micro-batch."""
        return nullcontext()

    def update_terms(self, policy: Any, update: Update) -> list[Term]:
        """Hook: terms that do not depend on data, added once per update."""
        return []

    def after_step(self, policy: Any, update: Update) -> None:
        """Hook: after the optimiser."""


class TokenObjective(Objective):
    """A loss that is a sum over target positions: write `token_loss(view) -> [n]`.

    Each value is multiplied by the position's weight and the sum divided by the update's global count of
    `unit` ("targets", "weights" or "records"; a mean per record divides by `view.record_targets` first).
    """

    def token_loss(self, view: TokenView) -> Tensor:
        """Loss [n] of each target position of the chunk, before weights."""
        raise RecipeError(f"{type(self).__name__} does not define `token_loss(self, view)`.")

    def terms(self, policy: TokenPolicy, batch: Batch, update: Update) -> list[Term]:
        hidden = policy.hidden(batch)
        total = token_pass(policy, batch, update, [(self, 1.0)], hidden)
        return [Term(total, self.unit), *self.hidden_terms(policy, batch, hidden, update)]

    def hidden_terms(self, policy: TokenPolicy, batch: Batch, hidden: Tensor, update: Update) -> list[Term]:
        """Hook: terms of the hidden states [N,D] that the head reads, besides the token loss."""
        return []

    def weighted(self, view: TokenView) -> Tensor:
        """token_loss × weights, with the shape checked once and for all."""
        loss = self.token_loss(view)
        if not hasattr(loss, "shape") or loss.shape != view.targets.shape:
            found = tuple(loss.shape) if hasattr(loss, "shape") else type(loss).__name__
            raise RecipeError(
                f"{type(self).__name__}.token_loss returned {found}; expected one value per target,"
                f" {tuple(view.targets.shape)}.",
                "Return the per-token values, without sum or mean: the engine divides by the global count.",
            )
        return loss * view.weights


def token_pass(
    policy: TokenPolicy,
    batch: Batch,
    update: Update,
    members: Sequence[tuple[TokenObjective, float]],
    hidden: Tensor,
) -> Tensor:
    """One pass of the head over `hidden` [N,D] for several token objectives: Σ factor × weighted loss, a scalar."""
    rows, columns = batch.targets()
    targets = batch.ids[rows, columns]
    streams = {name: s.values[rows, columns] for name, s in batch.streams.items() if s.axis == "token"}
    reads = {read for objective, _ in members for read in objective.reads if read.startswith("logits:")}
    references = {read.split(":")[1]: policy.references[read.split(":")[1]] for read in sorted(reads)}
    hidden_of = {name: (handle, handle.hidden(batch)) for name, handle in references.items()}
    keys = position_keys(batch)
    owner = batch.example_of[rows, columns]
    counts = owner.new_zeros(len(batch.examples)).index_add_(0, owner, torch.ones_like(owner))
    record_targets = counts[owner]
    whole = MicroBatchTargets(policy.head, hidden.detach(), targets, owner, streams, counts)

    def loss(piece: slice, logits: Tensor) -> Tensor:
        view = TokenView(
            logits=logits,
            targets=targets[piece],
            streams={name: values[piece] for name, values in streams.items()},
            hidden_of={name: (handle, states[piece]) for name, (handle, states) in hidden_of.items()},
            keys=keys[piece],
            record_targets=record_targets[piece],
            update=update,
            whole=whole,
            piece=piece,
        )
        total = sum(factor * objective.weighted(view) for objective, factor in members)
        view.meter("nll", -view.logprob)
        return total  # pyright: ignore[reportReturnType]

    return policy.head.sum(hidden, loss)


@dataclass
class SequenceView:
    """One micro-batch by row: sums over the targets of its R rows."""

    logprob: Tensor  # [R] Σ log p(target), differentiable
    count: Tensor  # [R] targets of each row
    streams: dict[str, Tensor]  # row streams [R]
    reference_logprob: dict[str, Tensor]  # reference → [R], from streams `logprobs:<reference>`
    update: Update

    @property
    def mean(self) -> Tensor:
        """Mean log p per target, [R]."""
        return self.logprob / self.count

    def log_ratio(self, reference: str = "initial") -> Tensor:
        """Σ (log p - log p of the reference), [R]."""
        return self.logprob - self.reference_logprob[reference]

    def take(self, rows: Tensor) -> SequenceView:
        """The view of some rows, in the order of these indices."""
        return SequenceView(
            logprob=self.logprob[rows],
            count=self.count[rows],
            streams={name: values[rows] for name, values in self.streams.items()},
            reference_logprob={name: values[rows] for name, values in self.reference_logprob.items()},
            update=self.update,
        )


def sequence_view(policy: TokenPolicy, batch: Batch, update: Update) -> SequenceView:
    """One forward over a micro-batch, summed by row."""
    rows, columns = batch.targets()
    targets, owner = batch.ids[rows, columns], batch.example_of[rows, columns]
    logprob = policy.head.map(policy.hidden(batch), lambda s, z: heads.target_logprob(z, targets[s]))

    def per_row(values: Tensor) -> Tensor:
        return torch.zeros(len(batch.examples), dtype=values.dtype, device=values.device).index_add(0, owner, values)

    return SequenceView(
        logprob=per_row(logprob),
        count=per_row(torch.ones_like(logprob)),
        streams={name: s.values for name, s in batch.streams.items() if s.axis == "row"},
        reference_logprob={
            name.split(":")[1]: per_row(s.values[rows, columns].to(logprob.dtype))
            for name, s in batch.streams.items()
            if name.startswith("logprobs:")
        },
        update=update,
    )


class SequenceObjective(Objective):
    """A loss per record from summed log-probabilities: write `sequence_loss(view) -> [R]`."""

    UNIT: ClassVar[str] = "records"

    def sequence_loss(self, view: SequenceView) -> Tensor:
        """Loss [R] of each record of the micro-batch."""
        raise RecipeError(f"{type(self).__name__} does not define `sequence_loss(self, view)`.")

    def terms(self, policy: TokenPolicy, batch: Batch, update: Update) -> list[Term]:
        view = sequence_view(policy, batch, update)
        update.meter("nll", -view.logprob.detach().sum(), "targets")
        loss = check_one_per(self.sequence_loss(view), view.count, f"{type(self).__name__}.sequence_loss", "record")
        return [Term((loss * (view.count > 0)).sum(), self.unit)]


class CoupledObjective(Objective):
    """A loss in which the records of an update meet: write `features` and `coupled_loss`.

    The engine gathers the features of all micro-batches and ranks, takes the loss once, and brings its gradient
    back to each record in a second forward: exact under any split.
    """

    COUPLES: ClassVar[bool] = True
    UNIT: ClassVar[str] = "records"

    def features(self, policy: Any, batch: Batch) -> dict[str, Tensor]:
        """What the loss needs of each of the batch's R records: name → [R,...], without sums over records."""
        raise RecipeError(f"{type(self).__name__} does not define `features(self, policy, batch)`.")

    def coupled_loss(self, features: dict[str, Tensor], streams: dict[str, Tensor], update: Update) -> list[Term]:
        """Terms from the features and row streams of all records of the update, in one order of records."""
        raise RecipeError(f"{type(self).__name__} does not define `coupled_loss(self, features, streams, update)`.")

    def terms(self, policy: Any, batch: Batch, update: Update) -> list[Term]:
        """A sum of value 0 whose gradient is the coupled loss's: its coefficient has gone into the pulls."""
        pulls = update.pulls[id(self)][id(batch)]
        if not pulls:
            return []
        with update.repeatable(batch):
            found = self.features(policy, batch)
        moved = ((found[name].to(pull.dtype), pull) for name, pull in pulls.items() if found[name].requires_grad)
        return [Term(((values - values.detach()) * pull).sum(), None) for values, pull in moved]


def check_one_per(loss: Any, count: Tensor, verb: str, what: str) -> Tensor:
    """The loss, if it has one value for each of these."""
    if not hasattr(loss, "shape") or loss.shape != count.shape:
        found = getattr(loss, "shape", type(loss).__name__)
        raise RecipeError(f"{verb} returned {found}; expected one value per {what}, {tuple(count.shape)}.")
    return loss


class WeightedSum(Objective):
    """Σ coefficient × objective, in written order; token objectives share one pass of the head."""

    members: tuple[tuple[Any, float], ...]

    def units(self, batch: Batch) -> dict[str, float]:
        return {name: n for objective, _ in self.members for name, n in objective.units(batch).items()}

    def moves(self, row: Row) -> bool:
        return any(objective.moves(row) for objective, _ in self.members)

    def terms(self, policy: Any, batch: Batch, update: Update) -> list[Term]:
        tokens = any(isinstance(objective, TokenObjective) for objective, _ in self.members)
        terms = self._token_terms(policy, batch, update) if tokens else []
        nll_known = bool(tokens)
        for objective, coefficient in self.members:
            if isinstance(objective, TokenObjective):
                continue
            aside = replace(update, meters={})
            factor = 1.0 if isinstance(objective, CoupledObjective) else coefficient
            own = objective.terms(policy, batch, aside)
            terms += [Term(term.total, term.unit, term.coefficient * factor) for term in own]
            for name, (unit, total) in aside.meters.items():
                if name != "nll" or not nll_known:  # every member sees the same: report it once
                    update.meter(name, total, unit)
            nll_known = nll_known or "nll" in aside.meters
        return terms

    def _token_terms(self, policy: Any, batch: Batch, update: Update) -> list[Term]:
        tokens = [(o, c) for o, c in self.members if isinstance(o, TokenObjective)]
        hidden = policy.hidden(batch)
        shared = token_pass(policy, batch, update, [(o, c / update.counts[o.unit]) for o, c in tokens], hidden)
        return [Term(shared, None)] + [
            Term(term.total, term.unit, term.coefficient * coefficient)
            for objective, coefficient in tokens
            for term in objective.hidden_terms(policy, batch, hidden, update)
        ]

    def companions(self, policy: Any) -> dict[str, Companion]:
        found: dict[str, Companion] = {}
        for objective, _ in self.members:
            own = objective.companions(policy)
            if twice := sorted(found.keys() & own.keys()):
                raise RecipeError(
                    f"Two objectives of a sum bring a companion called `{twice[0]}`.", "Keep one of them."
                )
            found |= own
        return found

    def prepare(self, policy: Any, update: Update) -> None:
        for objective, _ in self.members:
            objective.prepare(policy, update)

    def scope(self, policy: Any, batch: Batch, update: Update) -> AbstractContextManager[Any]:
        stack = ExitStack()
        for objective, _ in self.members:
            stack.enter_context(objective.scope(policy, batch, update))
        return stack

    def update_terms(self, policy: Any, update: Update) -> list[Term]:
        return [
            Term(term.total, term.unit, term.coefficient * coefficient)
            for objective, coefficient in self.members
            for term in objective.update_terms(policy, update)
        ]

    def after_step(self, policy: Any, update: Update) -> None:
        for objective, _ in self.members:
            objective.after_step(policy, update)


def _records(batch: Batch, rows: Sequence[int]) -> int:
    """Records that these rows make up, each as often as it was drawn: an update may be larger than the data set."""
    times: dict[str, int] = {}
    for (record_rows, _), count in Counter((batch.records[row], batch.examples[row]) for row in rows).items():
        times[record_rows] = max(times.get(record_rows, 0), count)
    return sum(times.values())


def build_objective(spec: Any, base: Path | None = None) -> Objective:
    """An objective from a recipe: a name, a block, or a list of {objective, coefficient} (a weighted sum)."""
    if not isinstance(spec, list):
        return parts.build("objective", spec, base)
    return WeightedSum(
        members=tuple((parts.build("objective", item["objective"], base), item["coefficient"]) for item in spec)
    )


def weighted_members(objective: Objective) -> list[tuple[Objective, float]]:
    """The objective itself, or the members of a sum, with their coefficients."""
    return list(objective.members) if isinstance(objective, WeightedSum) else [(objective, 1.0)]


def members_of(objective: Objective) -> list[Objective]:
    """The objective itself, or the members of a sum, each followed by the objectives that its options hold."""
    if isinstance(objective, WeightedSum):
        return [found for member, _ in weighted_members(objective) for found in members_of(member)]
    options = (getattr(objective, name) for name in type(objective).model_fields)
    return [objective, *(found for held in options if isinstance(held, Objective) for found in members_of(held))]


def total_of(terms: Iterable[Term], counts: Mapping[str, float]) -> Tensor | None:
    """Σ coefficient × total / count; a unit whose global count is 0 contributes nothing. None without any term."""
    pieces = [
        term.coefficient * term.total / (1.0 if term.unit is None else counts[term.unit])
        for term in terms
        if term.unit is None or counts[term.unit]
    ]
    return torch.stack([piece.reshape(()) for piece in pieces]).sum() if pieces else None


def reads_of(objective: Objective) -> tuple[str, ...]:
    """All streams and references an objective reads."""
    return tuple(dict.fromkeys(read for member in members_of(objective) for read in member.reads))


def judgement_of(objective: Objective) -> Literal["pairs", "labels", ""]:
    """How the answers that the objective reads must be judged: in pairs, each by a label, or not at all.

    Raises:
        RecipeError: some members of a sum read bad answers and others do not, which would learn them too.
    """
    members = members_of(objective)
    judged = [member for member in members if {"pairs", "labels"}.intersection(member.NEEDS)]
    if judged and len(judged) < len(members):
        other = next(member for member in members if member not in judged)
        raise RecipeError(
            f"`{judged[0].kind}` reads good and bad answers, and `{other.kind}` would learn both.",
            "Sum objectives that read both; `orpo` adds the likelihood of the chosen answers.",
        )
    if not judged:
        return ""
    return "pairs" if any("pairs" in member.NEEDS for member in judged) else "labels"
