"""Rollouts: strategies ask for continuations, rewards judge them, advantages credit tokens, rows go to the engine.

`drive` is in the file of that name.

    groups = drive(strategy, prompts, sample, judge, ...)       all prompts in lock-step
    columns = score pass over rows_of(groups)                   old log-probs, entropies, values: as READS say
    rollout = Rollout.of(groups, columns)
    rows = rows_of(groups, credit(chain, rollout), rollout.columns)

Arrays "per trajectory" are lists in the order of groups and members, each [n] over the trajectory's own ids
(what was forced included; neither prompt nor context). B counts trajectories.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy
from numpy import ndarray

from luthier.errors import DataError, RecipeError, RunError
from luthier.keyed import seed63
from luthier.parts import Part, build
from luthier.types import Record, Request, Row, Scored, Stream, Trajectory

Arrays = list[ndarray]


@dataclass(frozen=True)
class Prompt:
    """One question: its record, its token ids, and the token ids of its gold answer with the end-of-turn token."""

    record: Record
    ids: Sequence[int]
    demonstration: Sequence[int] | None = None

    def request(self, context: Sequence[int] = (), forced: Sequence[int] = (), train_forced: bool = False) -> Request:
        """Ask for one continuation of the prompt, of a context behind it, and of forced tokens behind both.

        A context is part of the question (never trained, not part of the answer that is judged); forced tokens are
        part of the answer.
        """
        return Request([*self.ids, *context], self.record.id, tuple(forced), train_forced)


@dataclass(frozen=True)
class Group:
    """Answers to one prompt that are compared with each other; all saw the same `context` behind the prompt.

    `facts` are numbers to report, averaged over groups.
    """

    prompt: Prompt
    members: tuple[Scored, ...]
    context: tuple[int, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)

    @property
    def rewards(self) -> list[float]:
        """Those that there are."""
        return [one.reward for one in self.members if one.reward is not None]

    @property
    def informative(self) -> bool:
        """Whether rewards differ: otherwise every group-relative advantage is 0."""
        return len(set(self.rewards)) > 1


@dataclass(frozen=True)
class Context:
    """What a strategy knows besides its prompt.

    Attributes:
        key: (seed, rollout, record, occurrence) that its random numbers depend on.
        progress: share of the budget that is spent, 0 to 1.
        state: what `Strategy.start()` returned; the same for all prompts and rollouts.
        decode: token ids to text.
        end_ids: tokens that end a turn.
        max_new_tokens: the most that are sampled for one request.
    """

    key: tuple[int, int, str, int]
    progress: float
    state: Any
    decode: Callable[[Sequence[int]], str]
    end_ids: frozenset[int]
    max_new_tokens: int

    def seed(self, round: int, index: int) -> int:
        """63 bits from (seed, rollout, record, round, index); negative indices are the strategy's own draws."""
        return seed63(*self.key, round, index)


Rounds = Generator[list[Request], list[Scored], list[Group]]


class Strategy(Part):
    """Which continuations of a prompt are wanted. Verb: `rounds`; hooks: `start`, `check`.

    NEEDS ("demonstrations",) says that gold answers are used; a prompt may still lack one.
    """

    SLOT: ClassVar[str] = "strategy"
    FOLDER: ClassVar[str] = "strategies"
    NEEDS: ClassVar[tuple[str, ...]] = ()

    def rounds(self, prompt: Prompt, ctx: Context) -> Rounds:
        """A generator: `scored = yield [requests]` as often as needed, then `return [groups]`.

        Requests are made by `prompt.request`; seeds are given by the driver. Those that differ in `group` are
        judged apart. A round's answers come back in the order of its requests.
        """
        raise RecipeError(f"{type(self).__name__} does not define `rounds(self, prompt, ctx)`.")
        yield []

    def start(self) -> Any:
        """Hook: memory between rollouts, or None. It needs `state_dict() -> JSON values` and `load_state_dict`."""
        return None

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Hook: refuse data that the strategy cannot work with, before anything is sampled.

        Raises:
            DataError: demonstrations are needed and no prompt has one.
        """
        if "demonstrations" in self.NEEDS and not any(prompt.demonstration for prompt in prompts):
            names = prompts[0].record if prompts else None
            raise DataError(
                f"The strategy `{self.kind}` shows parts of gold answers, and no record has one"
                + (f" (the first is {names.id}, {names.origin})." if names else "."),
                "Use records with a completion, or rl.strategy=plain.",
            )


class Memory:
    """One plain value per record id, kept in checkpoints: what a strategy remembers between rollouts."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.values)

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        self.values = dict(values)


class Judge(Protocol):
    """Scores answers: pairs of a prompt and the answers to compare, each answered in order."""

    def __call__(self, asked: Sequence[tuple[Prompt, Sequence[Trajectory]]]) -> list[list[Scored]]: ...


@dataclass
class Rollout:
    """A whole rollout as advantages see it: B trajectories in groups.

    Attributes:
        rewards: [B], NaN where no reward applied.
        parts: rewards by name, [B] each, NaN where not given.
        group_of: [B] index into `groups`.
        trained, forced: per trajectory, bool [n].
        columns: name → per trajectory [n]; advantages may add to it (`returns`).
    """

    groups: Sequence[Group]
    rewards: ndarray
    parts: dict[str, ndarray]
    group_of: ndarray
    trained: Arrays
    forced: Arrays
    columns: dict[str, Arrays]

    @classmethod
    def of(cls, groups: Sequence[Group], columns: Mapping[str, Mapping[str, ndarray]] | None = None) -> Rollout:
        """From groups and what a score pass found: name → row id → [T] over prompt, context and completion.

        An answer that has no row there is not trained.
        """
        members = [one for group in groups for one in group.members]
        names = dict.fromkeys(name for one in members for name in one.parts)
        rollout = cls(
            groups=groups,
            rewards=numpy.array([numpy.nan if one.reward is None else one.reward for one in members]),
            parts={name: numpy.array([one.parts.get(name, numpy.nan) for one in members]) for name in names},
            group_of=numpy.repeat(numpy.arange(len(groups)), [len(group.members) for group in groups]),
            trained=[trained_tokens(one.trajectory) & _has_row(one.trajectory, columns) for one in members],
            forced=[forced_tokens(one.trajectory) for one in members],
            columns={},
        )
        for name, column in (columns or {}).items():
            rollout.columns[name] = [_own_part(column.get(row_id(one.trajectory)), one.trajectory) for one in members]
        if members and all(len(one.trajectory.logprobs) == len(one.trajectory.ids) for one in members):
            rollout.columns["sampler_logprobs"] = [numpy.array(one.trajectory.logprobs) for one in members]
        return rollout

    @property
    def members(self) -> list[Scored]:
        return [one for group in self.groups for one in group.members]

    @property
    def lengths(self) -> ndarray:
        """Tokens of each trajectory, [B]."""
        return numpy.array([len(mask) for mask in self.trained], dtype=int)

    def start_values(self) -> Arrays:
        """What a chain starts from: the reward at the last trained token, 0 before; NaN where there is no reward."""
        values = []
        for reward, trained in zip(self.rewards, self.trained, strict=True):
            places = trained.nonzero()[0]
            value = numpy.full(len(trained), 0.0 if numpy.isfinite(reward) else numpy.nan)
            if len(value):
                value[places[-1] if len(places) else -1] = reward
            values.append(value)
        return values

    def totals(self, values: Arrays) -> ndarray:
        """Σ over the tokens of each trajectory, [B]."""
        return numpy.array([value.sum() if len(value) else numpy.nan for value in values])

    def spread(self, numbers: ndarray) -> Arrays:
        """One number per trajectory [B], given to each of its tokens."""
        return [numpy.full(length, number) for number, length in zip(numbers, self.lengths, strict=True)]

    def by_group(self, what: str) -> list[ndarray]:
        """Indices of the trajectories of each group, for an advantage that compares them.

        Raises:
            RunError: a group has one member, which leaves nothing to compare.
        """
        found = [(self.group_of == index).nonzero()[0] for index in range(len(self.groups))]
        for group, places in zip(self.groups, found, strict=True):
            if len(places) < 2:
                raise RunError(
                    f"The advantage `{what}` compares the answers of a group, and record {group.prompt.record.id} has"
                    f" {len(places)}.",
                    "Set rl.strategy.group to 2 or more.",
                )
        return found


class Advantage(Part):
    """One link of a chain from rewards to advantages. Verb: `compute`.

    A chain starts from per-token rewards (`Rollout.start_values`); a link that credits whole answers sums them and
    gives the result to every token. READS names columns that the score pass must give, WRITES those that the link
    adds to `rollout.columns`. TAKES and GIVES say what stands before and behind it: rewards (what is earned at each
    token) or advantages (what a token is credited with). COMPARES says that it compares the answers of a group.
    """

    SLOT: ClassVar[str] = "advantage"
    FOLDER: ClassVar[str] = "advantages"
    READS: ClassVar[tuple[str, ...]] = ()
    WRITES: ClassVar[tuple[str, ...]] = ()
    TAKES: ClassVar[Literal["rewards", "advantages", "either"]] = "either"
    GIVES: ClassVar[Literal["advantages", "the same"]] = "advantages"
    COMPARES: ClassVar[bool] = False

    def compute(self, rollout: Rollout, values: Arrays) -> Arrays | ndarray:
        """Per trajectory [n] → per trajectory [n]; an array [B] stands for one number per trajectory."""
        raise RecipeError(f"{type(self).__name__} does not define `compute(self, rollout, values)`.")


def build_chain(spec: Any, base: Path | None = None) -> tuple[Advantage, ...]:
    """The advantages of a recipe: a name, a block, or a list of them in the order of computation."""
    return tuple(build("advantage", one, base) for one in (spec if isinstance(spec, list | tuple) else [spec]))


def credit(chain: Sequence[Advantage], rollout: Rollout) -> Arrays:
    """Run the chain: advantages per trajectory [n]; 0 for trajectories without a reward.

    Raises:
        RecipeError: as `check_chain`.
        RunError: no trajectory has a reward, or a link gives something of another shape.
    """
    check_chain(chain, rollout.columns)
    if not rollout.groups:
        return []
    if not numpy.isfinite(rollout.rewards).any():
        raise RunError(
            f"No answer of this rollout has a reward (first record: {rollout.groups[0].prompt.record.id}).",
            "Every reward said that it does not apply. Look at the gold answers and at the failures in the log.",
        )
    values = rollout.start_values()
    for link in chain:
        found = link.compute(rollout, values)
        values = rollout.spread(found) if isinstance(found, ndarray) else list(found)
        shapes = [numpy.shape(value) for value in values]
        if shapes != [(length,) for length in rollout.lengths]:
            raise RunError(f"The advantage `{link.kind}` gave arrays of other lengths than the answers.")
    return [numpy.where(numpy.isnan(value), 0.0, value) for value in values]


def check_chain(chain: Sequence[Advantage], columns: Collection[str] | None = None) -> None:
    """Refuse a chain in a senseless order, or one that reads columns that nobody makes.

    Args:
        columns: those that are there; None leaves that open.
    """
    credited = ""
    there = None if columns is None else set(columns)
    for link in chain:
        if link.TAKES == "rewards" and credited:
            raise RecipeError(
                f"The advantage `{link.kind}` starts from rewards, and `{credited}` before it gives advantages.",
                f"Put `{link.kind}` first, or leave one of them out.",
            )
        if link.TAKES == "advantages" and not credited:
            raise RecipeError(f"The advantage `{link.kind}` changes advantages, and nothing before it gives any.")
        if missing := [name for name in link.READS if there is not None and name not in there]:
            raise RecipeError(f"The advantage `{link.kind}` reads the column `{missing[0]}`, which is not there.")
        credited = credited or (link.kind if link.GIVES == "advantages" else "")
        there = None if there is None else there | set(link.WRITES)
    if not credited:
        last = f"`{chain[-1].kind}` leaves rewards" if chain else "the chain is empty"
        raise RecipeError(
            f"rl.advantages gives no advantages: {last}.", "Add one, for example `group_norm` or `returns`."
        )


def trained_tokens(trajectory: Trajectory) -> ndarray:
    """Which ids of a trajectory are targets, bool [n]: sampled ones, forced ones if the request says so."""
    request = trajectory.request
    return ~forced_tokens(trajectory) | bool(request is not None and request.train_forced)


def forced_tokens(trajectory: Trajectory) -> ndarray:
    """Which ids of a trajectory were given, bool [n]."""
    given = len(trajectory.request.forced_ids) if trajectory.request is not None else 0
    return numpy.arange(len(trajectory.ids)) < given


def row_id(trajectory: Trajectory) -> str:
    """`record#rollout.round.index`, the same for the same seed: what its row and its columns are called."""
    assert trajectory.request is not None, "trajectories of groups come from `drive`"
    return trajectory.request.metadata["row"]


def rows_of(
    groups: Sequence[Group],
    advantages: Sequence[ndarray] | None = None,
    columns: Mapping[str, Sequence[ndarray]] | None = None,
    mask_truncated: bool = False,
) -> list[Row]:
    """Training rows: what was asked (prompt and context) and the completion, with their streams.

    Streams (token): `weights` 1 on trained tokens, `forced`, `advantages`, and every column; a token's value stands
    at its own position. Answers that broke off in an error or have no trained token make no row.

    Args:
        advantages, columns: per trajectory [n]; without them the rows serve a score pass.
        mask_truncated: leave out answers that ran into the limit of tokens.
    """
    rows = []
    for index, trajectory in enumerate(one.trajectory for group in groups for one in group.members):
        left_out = trajectory.finish == "error" or (mask_truncated and trajectory.finish == "length")
        if left_out or not trained_tokens(trajectory).any():
            continue
        own = {name: column[index] for name, column in (columns or {}).items()}
        if advantages is not None:
            own["advantages"] = advantages[index].astype(numpy.float32)
        own["weights"] = trained_tokens(trajectory).astype(numpy.float32)
        own["forced"] = forced_tokens(trajectory).astype(numpy.float32)
        asked = [] if trajectory.request is None else list(trajectory.request.prompt_ids)
        streams = {
            name: Stream(numpy.concatenate([numpy.zeros(len(asked), dtype=values.dtype), values]), "token")
            for name, values in own.items()
        }
        ids = numpy.array([*asked, *trajectory.ids], dtype=numpy.int32)
        rows.append(Row(row_id(trajectory), ids, streams))
    return rows


def _has_row(trajectory: Trajectory, columns: Mapping[str, Mapping[str, ndarray]] | None) -> bool:
    return not columns or any(row_id(trajectory) in column for column in columns.values())


def _own_part(values: ndarray | None, trajectory: Trajectory) -> ndarray:
    """The end of a row's column [T] that belongs to the trajectory's own ids [n]; 0 where the row was left out."""
    length = len(trajectory.ids)
    return numpy.zeros(length) if values is None else numpy.asarray(values)[len(values) - length :]
