"""The conformance matrix of rewards: on made-up answers, on answers that mean harm, and on the part's own EXAMPLES."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.conformance import samples, texts
from luthier.conformance.base import Failed, check_options, variants
from luthier.rewards.base import Answer, Judged, Reward
from luthier.types import Record

COLUMNS: Mapping[str, Any] = {
    "choices": ["no", "yes"],
    "options": ["yes", "no"],
    "schema": {"required": ["b"]},
    "form": '{"required": ["a"]}',
}
TEXTS = (  # an answer, the gold answer, tokens: right and wrong, in the forms that answers come in
    ("1.001", "1", 70), ("a", "a", 10), ("A", "a", 95), (" a", "a", 60), ("b", "b", 40), ("{}", "x", 3),
    ('{"a": 1}', "1", 30), ('see {"a": 1}', "1", 85), ("(A)", "yes", 88), ("so it is yes, because", "yes", 5),
    ("#### 42", r"\boxed{42}", 2),
)  # fmt: skip


def made_up(part: type[Reward]) -> list[Answer]:
    """The answers that a part is tried on: everyone's and those of its EXAMPLES."""
    common = [{"text": text, "gold": gold, "tokens": tokens, **COLUMNS} for text, gold, tokens in TEXTS]
    own = [one for _, given, _ in part.EXAMPLES for one in ([given] if isinstance(given, dict) else given)]
    return [answer_of(one, f"record-{number}") for number, one in enumerate([*common, *own])]


def answer_of(described: Mapping[str, Any], name: str = "record") -> Answer:
    """An answer from its description: text, gold, tokens, finish; anything else is a column of its record."""
    fields = dict(described)
    known = {key: fields.pop(key) for key in ("text", "gold", "tokens", "finish") if key in fields}
    return Answer(record=Record(name, "prompt_completion", fields, "made up"), **known)


def values_of(reward: Reward, answers: Sequence[Answer]) -> list[float | None]:
    """What a reward says of one group, without the rest of it.

    Raises:
        Failed: it is no finite number, and not None either.
    """
    found = [one.value if isinstance(one, Judged) else one for one in reward.score_group(answers)]
    if len(found) != len(answers):
        raise Failed(f"{len(found)} values for {len(answers)} answers")
    for value, answer in zip(found, answers, strict=True):
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise Failed(f"the answer {texts.short(answer.text)} is worth {value!r}: neither a number nor None")
    return found


def check_any_answer(rewards: Sequence[Reward]) -> None:
    """Whatever a model writes, and whatever a record lacks, there is a number or None in time."""
    for reward in rewards:
        for text in texts.HOSTILE:
            for gold, columns in ((text, {}), ("42", {**COLUMNS, "tests": "assert True"})):
                answer = answer_of({"text": text, "gold": gold, "tokens": len(text), **columns})
                texts.survived(reward, text, lambda answer=answer, reward=reward: values_of(reward, [answer]))


def check_pure(reward: Reward) -> None:
    """The same answers are worth the same, and their records are left as they were."""
    answers = made_up(type(reward))
    before = copy.deepcopy([answer.record.fields for answer in answers])
    one, other = values_of(reward, answers), values_of(reward, answers)
    if one != other:
        raise Failed("the same answers are worth something else the second time: is there a random call, or memory?")
    if before != [answer.record.fields for answer in answers]:
        raise Failed("the columns of a record are changed: copy them")


def check_batch(reward: Reward) -> None:
    """An answer is worth the same alone and in a batch; where answers are compared, in any order of the group."""
    answers = made_up(type(reward))
    whole = values_of(reward, answers)
    if reward.compares:
        backwards = values_of(reward, answers[::-1])[::-1]
        if whole != backwards:
            raise Failed("with the answers of the group in another order an answer is worth something else")
        return
    if whole != [values_of(reward, [answer])[0] for answer in answers[::-1]][::-1]:
        raise Failed("an answer is worth something else alone than in a batch")


def check_examples(part: type[Reward]) -> None:
    """Every example of the part is worth what it says."""
    for settings, given, value in part.EXAMPLES:
        group, wanted = ([given], [value]) if isinstance(given, Mapping) else (given, value)
        found = values_of(part(**settings), [answer_of(one) for one in group])
        for one, said, worth in zip(group, wanted, found, strict=True):
            if said != worth and not (said is not None and worth is not None and math.isclose(said, worth)):
                told = json.dumps(one, ensure_ascii=False)
                raise Failed(f"EXAMPLES says that {told} is worth {said}, and it is worth {worth}")


def numbers_of(reward: Reward) -> dict[str, Tensor]:
    """All values of the made-up answers and of each example's group, told apart from None."""
    part = type(reward)
    groups = [[answer_of(one) for one in given] for _, given, _ in part.EXAMPLES if not isinstance(given, Mapping)]
    values = [value for group in [made_up(part), *groups] for value in values_of(reward, group)]
    return {"values": torch.tensor([[value or 0.0, value is None] for value in values], dtype=torch.float64)}


def checks(part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of a reward, in the order they are run."""
    if part.MODALITY != "language":
        yield from samples.checks(part)
        return
    made = variants(part)
    yield "a number or None for any answer, in time", lambda: check_any_answer(made[:1])
    yield "deterministic, leaves what it is given", lambda: check_pure(made[0])
    yield "alone, in a batch, in any order: the same", lambda: check_batch(made[0])
    common = Reward.model_fields  # what the engine reads
    yield "every option changes something", lambda: check_options(made, numbers_of, common)
    if part.EXAMPLES:
        yield "its examples hold", lambda: check_examples(part)
