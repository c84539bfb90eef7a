"""Rewards, and the weighted sum of several. Nothing here imports torch.

A recipe lists rewards: `[math, {kind: format, pattern: ..., weight: 0.2}]`. A weight is 1 unless it is written. A
reward of weight 0 is not evaluated, except where samples of a diffusion model are scored: there it is reported. Rewards
are logged under their names; the second reward of a kind is `format_2`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.errors import RecipeError
from luthier.parts import Part, build, describe_error
from luthier.rewards._guard import TooSlow, within
from luthier.types import Record

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """One answer to a record, as rewards read it.

    Attributes:
        text: the answer without the tokens that end a turn; a prefix that a strategy put into the prompt is no part of
            it.
        gold: the record's gold answer; empty if the record has none.
        prompt: the prompt as text.
        tokens: length of the answer, including the end-of-turn token.
        finish: "stop", or "length" for an answer that was cut off.
        passed: values that earlier rewards of the list passed on.
    """

    text: str
    record: Record
    gold: str = ""
    prompt: str = ""
    tokens: int = 0
    finish: str = "stop"
    passed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """The value of an answer, with more to log and to pass on.

    Attributes:
        value: None if the reward does not apply.
        parts: further numbers to log, by name.
        passes: values for the rewards after this one in the list (`Answer.passed`).
    """

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    passes: Mapping[str, Any] = field(default_factory=dict)


Value = float | None | Judged


class Reward(Part):
    """Values answers. Define `score` for one answer, or `score_group` if answers are compared with each other.

    A value of None says that the reward does not apply to the answer. A reward that raises, or that takes longer than
    `seconds` (for one answer; for one group if answers are compared), counts as None: the failure is logged with the
    record, and the run goes on. A reward with `MODALITY = "diffusion"` values samples instead (`score_samples`); an
    exception there ends the run.

    EXAMPLES are answers with their values, which `luthier check` tries: (options, answer, value), or for a group
    (options, [answers], [values]). An answer is {text, gold, tokens, finish, and columns of its record}.
    """

    SLOT: ClassVar[str] = "reward"
    EXAMPLES: ClassVar[tuple[tuple[dict[str, Any], Any, Any], ...]] = ()
    MODALITY: ClassVar[str] = "language"
    seconds: float = Field(
        10.0,
        gt=0,
        description="Seconds allowed for one answer, or for one group where answers are compared. A reward that takes "
        "longer does not apply to them, and the run goes on.",
    )

    def score(self, answer: Answer) -> Value:
        """The value of one answer; None if the reward does not apply."""
        raise RecipeError(f"{type(self).__name__} defines neither `score` nor `score_group`.")

    def score_group(self, answers: Sequence[Answer]) -> Sequence[Value]:
        """One value per answer of a group (all answers to one prompt), in order."""
        return [self.score(answer) for answer in answers]

    def score_samples(self, samples: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """The values `[R]` of a diffusion model's samples `[R,...]`.

        Args:
            condition: by name, the conditions `[R,...]` that the samples were drawn under.
        """
        raise RecipeError(f"{type(self).__name__} does not define `score_samples(self, samples, condition)`.")

    @property
    def compares(self) -> bool:
        """Whether a value depends on the other answers of the group."""
        return type(self).score_group is not Reward.score_group


@dataclass(frozen=True)
class RewardSum:
    """The weighted sum of an answer's rewards (None if none applied), and each reward unweighted by name."""

    value: float | None
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Member:
    """One reward of a list, with its weight and the name it is logged under."""

    reward: Reward
    name: str
    weight: float = 1.0

    def of_samples(self, samples: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """The unweighted values `[R]` of a diffusion model's samples `[R,...]`, in the samples' dtype and device.

        Raises:
            RecipeError: the reward gives another number of values.
        """
        values = self.reward.score_samples(samples, condition)
        if values.shape != samples.shape[:1]:
            raise RecipeError(
                f"The reward `{self.name}` returned a tensor of shape {list(values.shape)} for {len(samples)} samples.",
                f"`score_samples` returns one value per sample: shape [{len(samples)}].",
            )
        return values.to(samples)


Log = Callable[[dict[str, Any]], None]
FAILED = "reward_failed"


def failure_in_words(line: Mapping[str, Any]) -> str:
    """A logged failure of a reward as the end of a sentence: the record and the error."""
    return f"record {line['record']}: {line['error'].rstrip('.')}"


@dataclass(frozen=True)
class Rewards:
    """Σ weight × reward over the rewards that apply.

    `log` is called for each failure of a reward, with its event, reward, record and error.
    """

    members: tuple[Member, ...]
    log: Log = lambda line: None

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each reward, by the name it is logged under."""
        return {member.name: member.weight for member in self.members}

    def __call__(self, answers: Sequence[Answer]) -> list[RewardSum]:
        """Judge one group of answers (all answers to one prompt), in order."""
        totals: list[float | None] = [None] * len(answers)
        parts: list[dict[str, float]] = [{} for _ in answers]
        for member in self.members:
            if member.weight == 0:
                continue
            judgements = self._judgements(member, answers)
            for index, judged in enumerate(judgements):
                for name, number in judged.parts.items():
                    parts[index][f"{member.name}.{name}"] = number
                if judged.value is not None:
                    parts[index][member.name] = judged.value
                    totals[index] = (totals[index] or 0.0) + member.weight * judged.value
            # Only rewards later in the list read what this one passes on.
            answers = [_with_passed(*pair) for pair in zip(answers, judgements, strict=True)]
        sums = []
        for answer, total, named in zip(answers, totals, parts, strict=True):
            if total is not None and not math.isfinite(total):
                self._failed("the weighted sum", [answer], f"ValueError: {total} is no reward")
                total, named = None, {}
            sums.append(RewardSum(total, named))
        return sums

    def of_samples(self, samples: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """The weighted sums `[R]` of a diffusion model's samples `[R,...]`.

        Raises:
            RecipeError: a reward gives another number of values.
        """
        weighted = [member for member in self.members if member.weight]
        return self.total({member.name: member.of_samples(samples, condition) for member in weighted})

    def by_name(self, samples: Tensor, condition: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The unweighted values `[R]` of each reward for samples `[R,...]`.

        Rewards of weight 0 are evaluated too: as judges that the training does not learn from.

        Raises:
            RecipeError: a reward gives another number of values.
        """
        return {member.name: member.of_samples(samples, condition) for member in self.members}

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        """Σ weight × values over the rewards of `by_name`; a weight of 0 leaves its reward out."""
        return reduce(add, (member.weight * values[member.name] for member in self.members if member.weight))

    def _judgements(self, member: Member, answers: Sequence[Answer]) -> list[Judged]:
        # Answers that are not compared are guarded one by one: a failure on one of them leaves the others valued.
        if not member.reward.compares:
            return [self._guarded(member, [answer])[0] for answer in answers]
        return self._guarded(member, answers)

    def _guarded(self, member: Member, answers: Sequence[Answer]) -> list[Judged]:
        """The values of a reward; None for all of these answers if the reward fails or takes too long."""
        try:
            values = within(member.reward.seconds, lambda: list(member.reward.score_group(answers)))
            if len(values) != len(answers):
                raise ValueError(f"{len(values)} values for {len(answers)} answers")
            return [_judged(value) for value in values]
        except (Exception, SystemExit, TooSlow) as error:  # not KeyboardInterrupt: Ctrl-C still ends the run
            self._failed(member.name, answers, describe_error(error))
            return [Judged(None)] * len(answers)

    def _failed(self, reward: str, answers: Sequence[Answer], error: str) -> None:
        for record in dict.fromkeys(answer.record.id for answer in answers):
            self.log({"event": FAILED, "reward": reward, "record": record, "error": error})


def _with_passed(answer: Answer, judged: Judged) -> Answer:
    return replace(answer, passed={**answer.passed, **judged.passes})


def _judged(returned: Any) -> Judged:
    """What a reward returned, as plain numbers; parts without a number are left out.

    Raises:
        TypeError, ValueError: the value or a part is no number, or the value is not finite.
    """
    judged = returned if isinstance(returned, Judged) else Judged(returned)
    reward = None if judged.value is None else _number(judged.value)
    if reward is not None and not math.isfinite(reward):
        raise ValueError(f"{reward} is no reward")
    parts = {}
    for name, part in (judged.parts or {}).items():
        if part is not None and math.isfinite(number := _number(part)):
            parts[str(name)] = number
    return Judged(reward, parts, dict(judged.passes or {}))


def _number(returned: Any) -> float:
    # float() would read text, such as "1_0" as 10: a reward that returns text has a fault.
    if isinstance(returned, str | bytes):
        raise TypeError(f"{returned!r} is text, not a number")
    return float(returned)


def build_rewards(spec: Any, base: Path | None = None, log: Log = lambda line: None) -> Rewards:
    """The rewards of a recipe.

    Args:
        spec: a name, a block, or a list of these. A block holds the options and `weight`, or `reward` and `weight`.
        base: folder that paths of part files are relative to.
        log: see `Rewards`.

    Raises:
        RecipeError: an unknown reward or option, a weight that is no number, or no weight other than 0.
    """
    members: list[Member] = []
    for entry in spec if isinstance(spec, list | tuple) else [spec]:
        block = dict(entry) if isinstance(entry, Mapping) else {"reward": entry}
        weight = block.pop("weight", 1.0)
        if type(weight) not in (int, float) or not math.isfinite(weight):
            raise RecipeError(f"The `weight` of a reward is a number; found {weight!r}.")
        reward = build("reward", block.get("reward", block), base)
        same = sum(member.reward.kind == reward.kind for member in members)
        members.append(Member(reward, f"{reward.kind}_{same + 1}" if same else reward.kind, float(weight)))
    if not any(member.weight for member in members):
        raise RecipeError("No reward has a weight other than 0.", "Name one, for example `math` or ./mine.py.")
    return Rewards(tuple(members), log)
