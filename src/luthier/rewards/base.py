"""What a reward is, and how several become one number. Nothing here imports torch.

A recipe lists rewards: `[math, {kind: format, pattern: ..., weight: 0.2}]`. A weight is 1 unless it is written, and a
reward of weight 0 is not evaluated; only where denoisers are scored it is shown. They are logged under their names; a
second one of a kind is `format_2`.
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
    """One answer to a record, as rewards see it.

    Attributes:
        text: what was written, without the tokens that end a turn and without what the prompt gave away.
        gold: the record's gold answer, empty where there is none.
        tokens: its length, the end-of-turn token included.
        finish: "stop" or "length" (cut off).
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
    """A value with more to say: numbers to log under names, values for the rewards behind it in the list."""

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    passes: Mapping[str, Any] = field(default_factory=dict)


Value = float | None | Judged


class Reward(Part):
    """How good answers are. Verb: `score` of one answer, or `score_group` where answers are compared.

    None says that the reward does not apply to the answer. What raises or takes too long counts as None and is
    logged with the record; the run goes on. `seconds` is the limit for one answer, or for one group where answers
    are compared. A reward with `MODALITY = "diffusion"` judges samples instead (`score_samples`), and what raises there
    ends the run.

    EXAMPLES are answers and what they are worth, which the matrix tries: (options, answer, value), or of a group
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
        """The value of one answer."""
        raise RecipeError(f"{type(self).__name__} defines neither `score` nor `score_group`.")

    def score_group(self, answers: Sequence[Answer]) -> Sequence[Value]:
        """The values of a group, in order."""
        return [self.score(answer) for answer in answers]

    def score_samples(self, samples: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """The values [R] of a denoiser's samples [R,...], drawn under the conditions, each [R,...]."""
        raise RecipeError(f"{type(self).__name__} does not define `score_samples(self, samples, condition)`.")

    @property
    def compares(self) -> bool:
        """Whether a value depends on the other answers of the group."""
        return type(self).score_group is not Reward.score_group


@dataclass(frozen=True)
class RewardSum:
    """The sum of all rewards of an answer, None where none applied, and each of them by name."""

    value: float | None
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Member:
    """One reward of a list."""

    reward: Reward
    name: str
    weight: float = 1.0

    def of_samples(self, samples: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """What this reward alone says of a denoiser's samples [R,...]: one value each, as `Rewards.by_name`."""
        found = self.reward.score_samples(samples, condition)
        if found.shape != samples.shape[:1]:
            raise RecipeError(
                f"The reward `{self.name}` gave {list(found.shape)} for {len(samples)} samples: one value each."
            )
        return found.to(samples)


Log = Callable[[dict[str, Any]], None]
FAILED = "reward_failed"


def failure_in_words(line: Mapping[str, Any]) -> str:
    """What a logged failure says: which reward, on which record, and the error."""
    return f"record {line['record']}: {line['error'].rstrip('.')}"


@dataclass(frozen=True)
class Rewards:
    """Σ weight × reward over those that apply. `log` hears of each failure: event, reward, record, error."""

    members: tuple[Member, ...]
    log: Log = lambda line: None

    def __call__(self, answers: Sequence[Answer]) -> list[RewardSum]:
        """Judge one group of answers, in order."""
        totals: list[float | None] = [None] * len(answers)
        parts: list[dict[str, float]] = [{} for _ in answers]
        for member in self.members:
            if member.weight == 0:
                continue
            found = self._values(member, answers)
            for index, one in enumerate(found):
                parts[index] |= {f"{member.name}.{name}": float(value) for name, value in one.parts.items()}
                if one.value is not None:
                    parts[index][member.name] = one.value
                    totals[index] = (totals[index] or 0.0) + member.weight * one.value
            answers = [
                replace(answer, passed={**answer.passed, **one.passes})
                for answer, one in zip(answers, found, strict=True)
            ]
        return [RewardSum(total, named) for total, named in zip(totals, parts, strict=True)]

    def of_samples(self, samples: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Judge a denoiser's samples [R,...]: one value each.

        Raises:
            RecipeError: a reward gives another number of values.
        """
        counted = [member for member in self.members if member.weight]
        return self.total({member.name: member.of_samples(samples, condition) for member in counted})

    def by_name(self, samples: Tensor, condition: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What each reward says of samples [R,...] by itself, those of weight 0 too: judges that teach nothing.

        Raises:
            RecipeError: a reward gives another number of values.
        """
        return {member.name: member.of_samples(samples, condition) for member in self.members}

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        """Σ weight × value of what rewards said of samples."""
        return reduce(add, (member.weight * values[member.name] for member in self.members if member.weight))

    def _values(self, member: Member, answers: Sequence[Answer]) -> list[Judged]:
        if not member.reward.compares:
            return [self._guarded(member, [answer])[0] for answer in answers]
        return self._guarded(member, answers)

    def _guarded(self, member: Member, answers: Sequence[Answer]) -> list[Judged]:
        """The values of a reward, None for all of these answers if it fails or takes too long."""
        try:
            values = within(member.reward.seconds, lambda: list(member.reward.score_group(answers)))
            if len(values) != len(answers):
                raise ValueError(f"{len(values)} values for {len(answers)} answers")
            return [_judged(value) for value in values]
        except (Exception, SystemExit, TooSlow) as error:
            for record in dict.fromkeys(answer.record.id for answer in answers):
                self.log({"event": FAILED, "reward": member.name, "record": record, "error": describe_error(error)})
            return [Judged(None)] * len(answers)


def _judged(value: Any) -> Judged:
    one = value if isinstance(value, Judged) else Judged(None if value is None else float(value))
    if one.value is not None and not math.isfinite(one.value):
        raise ValueError(f"{one.value} is no reward")
    return one


def build_rewards(spec: Any, base: Path | None = None, log: Log = lambda line: None) -> Rewards:
    """The rewards of a recipe: a name, a block, or a list of them; `weight` beside the options, or beside `reward`.

    Raises:
        RecipeError: an unknown reward or option, a weight that is no number, or none but weights of 0.
    """
    members: list[Member] = []
    for one in spec if isinstance(spec, list | tuple) else [spec]:
        block = dict(one) if isinstance(one, Mapping) else {"reward": one}
        weight = block.pop("weight", 1.0)
        if type(weight) not in (int, float) or not math.isfinite(weight):
            raise RecipeError(f"The `weight` of a reward is a number; found {weight!r}.")
        reward = build("reward", block.get("reward", block), base)
        same = sum(member.reward.kind == reward.kind for member in members)
        members.append(Member(reward, f"{reward.kind}_{same + 1}" if same else reward.kind, float(weight)))
    if not any(member.weight for member in members):
        raise RecipeError("No reward has a weight other than 0.", "Name one, for example `math` or ./mine.py.")
    return Rewards(tuple(members), log)
