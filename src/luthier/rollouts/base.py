"""Rollouts: strategies request answers, rewards judge them, advantages credit tokens, rows go to the engine.

    groups = drive(strategy, prompts, sample, judge, ...)       (drive.py) all prompts in lock-step
    columns = score pass over rows_of(groups)                   the columns that the advantages' READS name
    rollout = Rollout.of(groups, columns)
    rows = rows_of(groups, credit(chain, rollout), rollout.columns)

"Per trajectory" means a list in the order of groups and members, with one array [n] for each of the B trajectories.
The n tokens are the trajectory's own: forced tokens are included, prompt and context are not.
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

ROUNDING = 1e-9
"""Rewards that differ by less, relative to their mean where that exceeds 1, count as equal."""


@dataclass(frozen=True)
class Prompt:
    """A question: its record, its token ids, and the token ids of its gold answer, which end with the end token."""

    record: Record
    ids: Sequence[int]
    demonstration: Sequence[int] | None = None

    def request(self, context: Sequence[int] = (), forced: Sequence[int] = (), train_forced: bool = False) -> Request:
        """A request for one continuation of prompt, context and forced tokens.

        Args:
            context: tokens that extend the question; they are neither judged nor trained.
            forced: the first tokens of the answer, which are judged with it.
            train_forced: whether the forced tokens are trained.
        """
        return Request([*self.ids, *context], self.record.id, tuple(forced), train_forced)


@dataclass(frozen=True)
class Group:
    """Answers to one prompt that are compared with each other; all follow the same `context` behind the prompt.

    `facts` are numbers for the metrics (`rollout/NAME`), averaged over groups.
    """

    prompt: Prompt
    members: tuple[Scored, ...]
    context: tuple[int, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)

    @property
    def rewards(self) -> list[float]:
        """The rewards of the members that have one."""
        return [member.reward for member in self.members if member.reward is not None]

    @property
    def informative(self) -> bool:
        """Whether rewards differ: otherwise every group-relative advantage is 0."""
        return len(set(level(numpy.array(self.rewards)).tolist())) > 1


@dataclass(frozen=True)
class Context:
    """What a strategy may use besides its prompt.

    Attributes:
        key: (seed, rollout, record, occurrence of the record in the rollout), which decides its random numbers.
        progress: share of the budget that is spent, 0 to 1.
        state: the return of `Strategy.start()`, the same object for all prompts and rollouts.
        decode: token ids to text.
        end_ids: tokens that end a turn.
        max_new_tokens: the most tokens that are sampled for one request.
    """

    key: tuple[int, int, str, int]
    progress: float
    state: Any
    decode: Callable[[Sequence[int]], str]
    end_ids: frozenset[int]
    max_new_tokens: int

    def seed(self, round: int, index: int) -> int:
        """A seed of 63 bits from the key, round and index; a strategy's own draws use negative indices."""
        return seed63(*self.key, round, index)


Rounds = Generator[list[Request], list[Scored], list[Group]]


class Strategy(Part):
    """Decides which answers to a prompt are sampled. Verb: `rounds`; hooks: `start`, `check`.

    NEEDS = ("demonstrations",) says that the strategy uses gold answers. Single prompts may still lack one.
    """

    SLOT: ClassVar[str] = "strategy"
    FOLDER: ClassVar[str] = "strategies"
    NEEDS: ClassVar[tuple[str, ...]] = ()

    def rounds(self, prompt: Prompt, ctx: Context) -> Rounds:
        """A generator: `scored = yield [requests]` as often as needed, then `return [groups]`.

        `prompt.request` makes requests; the driver sets their seeds. The answers of a round come back in the order of
        its requests. A reward sees together the answers whose requests have the same `group`.
        """
        raise RecipeError(f"{type(self).__name__} does not define `rounds(self, prompt, ctx)`.")
        yield []  # makes this a generator, as every override is

    def start(self) -> Any:
        """Hook: an object that keeps state between rollouts, such as `Memory`, or None.

        Checkpoints store it: it needs `state_dict()`, which returns JSON values, and `load_state_dict`.
        """
        return None

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Hook: refuse prompts that the strategy cannot work with, before any sampling.

        Raises:
            DataError: demonstrations are needed and no prompt has one.
        """
        if "demonstrations" in self.NEEDS and not any(prompt.demonstration for prompt in prompts):
            first = prompts[0].record if prompts else None
            raise DataError(
                f"The strategy `{self.kind}` shows parts of gold answers, and no record has one"
                + (f" (the first is {first.id}, {first.origin})." if first else "."),
                "Use records with a completion, or rl.strategy=plain.",
            )


def level(rewards: ndarray) -> ndarray:
    """Rewards [G] of a group; where they differ by rounding alone, all become their mean. NaN stays NaN.

    A sum of weighted rewards rounds. Differences of 1e-13, divided by a deviation of 1e-13, would move the model.
    """
    finite = rewards[numpy.isfinite(rewards)]
    if len(finite) == 0 or finite.max() - finite.min() > ROUNDING * max(1.0, abs(float(finite.mean()))):
        return rewards
    # Exact where all are equal: a mean may be off in its last bit.
    mean = finite[0] if finite.min() == finite.max() else finite.mean()
    return numpy.where(numpy.isfinite(rewards), mean, rewards)


class Memory:
    """State of a strategy between rollouts: one JSON value per record id. Checkpoints store it."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.values)

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        self.values = dict(values)


class Judge(Protocol):
    """Scores answers. `asked` pairs prompts with the answers to compare; the scores keep that order."""

    def __call__(self, asked: Sequence[tuple[Prompt, Sequence[Trajectory]]]) -> list[list[Scored]]: ...


@dataclass
class Rollout:
    """A rollout as advantages see it: B trajectories in groups.

    Attributes:
        rewards: [B], NaN where no reward applied.
        parts: single rewards by name, [B] each, NaN where one did not apply.
        weights: the recipe's weight of each single reward, by name.
        group_of: [B], index into `groups`.
        trained, forced: per trajectory, bool [n].
        columns: name → per trajectory [n]; an advantage may add columns (`returns`).
    """

    groups: Sequence[Group]
    rewards: ndarray
    parts: dict[str, ndarray]
    group_of: ndarray
    trained: Arrays
    forced: Arrays
    columns: dict[str, Arrays]
    weights: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, groups: Sequence[Group], columns: Mapping[str, Mapping[str, ndarray]] | None = None) -> Rollout:
        """A rollout of these groups.

        Args:
            groups: of `drive`.
            columns: of a score pass: name → row id → [T] over prompt, context and answer. An answer whose row the
                score pass left out is not trained.
        """
        members = [member for group in groups for member in group.members]
        trajectories = [member.trajectory for member in members]
        parts: dict[str, ndarray] = {}
        weights: dict[str, float] = {}
        for index, member in enumerate(members):
            weights |= member.weights
            for name, reward in member.parts.items():
                if name not in parts:
                    parts[name] = numpy.full(len(members), numpy.nan)
                parts[name][index] = reward
        rewards = numpy.array(
            [numpy.nan if member.reward is None else member.reward for member in members], dtype=float
        )
        ends = numpy.cumsum([len(group.members) for group in groups])[:-1]
        for numbers in (rewards, *parts.values()):
            for of_group in numpy.split(numbers, ends):
                of_group[:] = level(of_group)
        rollout = cls(
            groups=groups,
            rewards=rewards,
            parts=parts,
            weights=weights,
            group_of=numpy.repeat(numpy.arange(len(groups)), [len(group.members) for group in groups]),
            trained=[trained_tokens(trajectory) & _has_row(trajectory, columns) for trajectory in trajectories],
            forced=[forced_tokens(trajectory) for trajectory in trajectories],
            columns={},
        )
        for name, rows in (columns or {}).items():
            rollout.columns[name] = [_own_part(rows.get(row_id(own)), own) for own in trajectories]
        # A sampler behind a server returns no log-probabilities.
        if members and all(len(trajectory.logprobs) == len(trajectory.ids) for trajectory in trajectories):
            rollout.columns["sampler_logprobs"] = [numpy.array(trajectory.logprobs) for trajectory in trajectories]
        return rollout

    @property
    def members(self) -> list[Scored]:
        return [member for group in self.groups for member in group.members]

    @property
    def lengths(self) -> ndarray:
        """Tokens of each trajectory, [B]."""
        return numpy.array([len(mask) for mask in self.trained], dtype=int)

    def start_values(self) -> Arrays:
        """Per-token rewards that a chain starts from: the reward at the last trained token, 0 elsewhere.

        An answer without a reward has NaN at every token, so that no sum or mean counts it as 0.
        """
        per_trajectory = []
        for reward, trained in zip(self.rewards, self.trained, strict=True):
            positions = trained.nonzero()[0]
            token_rewards = numpy.full(len(trained), 0.0 if numpy.isfinite(reward) else numpy.nan)
            if len(token_rewards):
                # An answer that is not trained still needs its reward: the means of its group count it.
                token_rewards[positions[-1] if len(positions) else -1] = reward
            per_trajectory.append(token_rewards)
        return per_trajectory

    def totals(self, values: Arrays) -> ndarray:
        """The sum over each trajectory's tokens, [B]; NaN for a trajectory without tokens."""
        return numpy.array([tokens.sum() if len(tokens) else numpy.nan for tokens in values])

    def spread(self, numbers: ndarray) -> Arrays:
        """Numbers [B] → per trajectory [n]: every token gets its trajectory's number."""
        return [numpy.full(length, number) for number, length in zip(numbers, self.lengths, strict=True)]

    def by_group(self, advantage: str) -> list[ndarray]:
        """Indices of each group's trajectories, for an advantage of this name that compares them.

        Raises:
            RunError: a group has fewer than two members.
        """
        members_of = [(self.group_of == index).nonzero()[0] for index in range(len(self.groups))]
        for group, members in zip(self.groups, members_of, strict=True):
            if len(members) < 2:
                raise RunError(
                    f"The advantage `{advantage}` compares the answers of a group, and record {group.prompt.record.id}"
                    f" has {len(members)}.",
                    "Set rl.strategy.group to 2 or more.",
                )
        return members_of


class Advantage(Part):
    """One link of a chain from rewards to advantages. Verb: `compute`.

    A chain starts from per-token rewards (`Rollout.start_values`). A link that credits complete answers returns one
    number per answer, and every token of the answer gets that number.

    READS names the columns that the score pass has to compute, WRITES the columns that the link adds to
    `rollout.columns`. TAKES and GIVES say what the link reads and returns: rewards (earned at a token) or advantages
    (credited to a token). COMPARES says that the link compares the answers of a group, READS_PARTS that it starts
    from the single rewards by name, so that no link before it would have an effect.
    """

    SLOT: ClassVar[str] = "advantage"
    FOLDER: ClassVar[str] = "advantages"
    READS: ClassVar[tuple[str, ...]] = ()
    WRITES: ClassVar[tuple[str, ...]] = ()
    TAKES: ClassVar[Literal["rewards", "advantages", "either"]] = "either"
    GIVES: ClassVar[Literal["advantages", "the same"]] = "advantages"
    COMPARES: ClassVar[bool] = False
    READS_PARTS: ClassVar[bool] = False

    def compute(self, rollout: Rollout, values: Arrays) -> Arrays | ndarray:
        """Per trajectory [n] → per trajectory [n], or [B]: one number for all tokens of a trajectory."""
        raise RecipeError(f"{type(self).__name__} does not define `compute(self, rollout, values)`.")


def build_chain(spec: Any, base: Path | None = None) -> tuple[Advantage, ...]:
    """The advantages of a recipe: a name, a block, or a list of them in the order of computation."""
    links = spec if isinstance(spec, list | tuple) else [spec]
    return tuple(build("advantage", link, base) for link in links)


def credit(chain: Sequence[Advantage], rollout: Rollout) -> Arrays:
    """Run the chain: advantages per trajectory [n]; 0 for trajectories without a reward.

    Raises:
        RecipeError: as `check_chain`.
        RunError: no trajectory has a reward, or a link returns arrays of other shapes.
    """
    check_chain(chain, rollout.columns)
    if not rollout.groups:
        return []
    if not numpy.isfinite(rollout.rewards).any():
        raise RunError(
            f"No answer of this rollout has a reward (first record: {rollout.groups[0].prompt.record.id}).",
            "No reward applied to any answer. Look at the gold answers and at the failures in the log.",
        )
    values = rollout.start_values()
    for link in chain:
        # A user's link may return an array [B] or lists of any length; both are checked here, not in the loss.
        computed = link.compute(rollout, values)
        if len(computed) != len(rollout.lengths):
            raise RunError(
                f"The advantage `{link.kind}` returned numbers for {len(computed)} of {len(rollout.lengths)} answers."
            )
        values = rollout.spread(computed) if isinstance(computed, ndarray) else list(computed)
        if [numpy.shape(tokens) for tokens in values] != [(length,) for length in rollout.lengths]:
            raise RunError(f"The advantage `{link.kind}` returned arrays of other lengths than the answers.")
    # NaN marks answers without a reward. They get 0 only here: within the chain, 0 would count in means.
    return [numpy.where(numpy.isnan(tokens), 0.0, tokens) for tokens in values]


def check_chain(chain: Sequence[Advantage], columns: Collection[str] | None = None) -> None:
    """Refuse a chain whose order makes no sense, or which reads a column that does not exist.

    Args:
        chain: the advantages in the order of computation.
        columns: names of the columns that exist; None: not known yet, so columns are not checked.

    Raises:
        RecipeError: names the link and what it misses.
    """
    credited = ""  # name of the first link that gives advantages
    available = None if columns is None else set(columns)
    for index, link in enumerate(chain):
        if link.READS_PARTS and index:
            raise RecipeError(
                f"The advantage `{link.kind}` starts from the single rewards, so `{chain[index - 1].kind}` before it"
                " would have no effect.",
                f"Put `{link.kind}` first, or leave one of them out.",
            )
        if link.TAKES == "rewards" and credited:
            raise RecipeError(
                f"The advantage `{link.kind}` starts from rewards, and `{credited}` before it gives advantages.",
                f"Put `{link.kind}` first, or leave one of them out.",
            )
        if link.TAKES == "advantages" and not credited:
            raise RecipeError(f"The advantage `{link.kind}` changes advantages, and no link before it gives any.")
        missing = [name for name in link.READS if available is not None and name not in available]
        if missing:
            raise RecipeError(f"The advantage `{link.kind}` reads the column `{missing[0]}`, which does not exist.")
        credited = credited or (link.kind if link.GIVES == "advantages" else "")
        available = None if available is None else available | set(link.WRITES)
    if not credited:
        last = f"`{chain[-1].kind}` returns rewards" if chain else "the chain is empty"
        raise RecipeError(
            f"rl.advantages gives no advantages: {last}.", "Add one, for example `group_norm` or `returns`."
        )


def trained_tokens(trajectory: Trajectory) -> ndarray:
    """Which tokens of a trajectory are targets, bool [n]: sampled ones, and forced ones if the request says so."""
    request = trajectory.request
    return ~forced_tokens(trajectory) | bool(request is not None and request.train_forced)


def forced_tokens(trajectory: Trajectory) -> ndarray:
    """Which tokens of a trajectory were forced and not sampled, bool [n]."""
    count = len(trajectory.request.forced_ids) if trajectory.request is not None else 0
    return numpy.arange(len(trajectory.ids)) < count


def row_id(trajectory: Trajectory) -> str:
    """The id of the trajectory's row, `record#rollout.round.index`; the same in every run."""
    assert trajectory.request is not None, "trajectories of groups come from `drive`"
    return trajectory.request.metadata["row"]


def rows_of(
    groups: Sequence[Group],
    advantages: Sequence[ndarray] | None = None,
    columns: Mapping[str, Sequence[ndarray]] | None = None,
    mask_truncated: bool = False,
) -> list[Row]:
    """Training rows [T] of prompt, context and answer, with their streams.

    Streams of axis "token": `weights` (1 on trained tokens), `forced`, `advantages`, and every column. A token's number
    is at the token's own position, and 0 on prompt and context. Answers that ended in an error or have no trained token
    make no row.

    Args:
        groups: of `drive`.
        advantages, columns: per trajectory [n]; rows for a score pass need none.
        mask_truncated: leave out answers that reached the limit of tokens.
    """
    rows = []
    members = [member for group in groups for member in group.members]
    for index, trajectory in enumerate(member.trajectory for member in members):
        # Left-out answers still count in `advantages`, which has an entry for every trajectory: hence the index.
        left_out = trajectory.finish == "error" or (mask_truncated and trajectory.finish == "length")
        if left_out or not trained_tokens(trajectory).any():
            continue
        own = {name: column[index] for name, column in (columns or {}).items()}
        if advantages is not None:
            own["advantages"] = advantages[index].astype(numpy.float32)
        own["weights"] = trained_tokens(trajectory).astype(numpy.float32)
        own["forced"] = forced_tokens(trajectory).astype(numpy.float32)
        # `prompt_ids` of a request holds prompt and context.
        before = [] if trajectory.request is None else list(trajectory.request.prompt_ids)
        streams: dict[str, Stream] = {}
        for name, numbers in own.items():
            padding = numpy.zeros(len(before), dtype=numbers.dtype)
            streams[name] = Stream(numpy.concatenate([padding, numbers]), "token")
        ids = numpy.array([*before, *trajectory.ids], dtype=numpy.int32)
        rows.append(Row(row_id(trajectory), ids, streams))
    return rows


def _has_row(trajectory: Trajectory, columns: Mapping[str, Mapping[str, ndarray]] | None) -> bool:
    """Whether the score pass saw the trajectory's row; without a score pass, every trajectory counts."""
    return not columns or any(row_id(trajectory) in column for column in columns.values())


def _own_part(values: ndarray | None, trajectory: Trajectory) -> ndarray:
    """The end [n] of a row's column [T], which belongs to the trajectory's own tokens; 0 where there is no row."""
    length = len(trajectory.ids)
    return numpy.zeros(length) if values is None else numpy.asarray(values)[len(values) - length :]
