"""The checks of rewards: on invented answers, on hostile ones, and on the part's EXAMPLES."""

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


def sample_answers(part: type[Reward]) -> list[Answer]:
    """The answers that a part is tried on: those of TEXTS and those of its EXAMPLES."""
    descriptions = [{"text": text, "gold": gold, "tokens": tokens, **COLUMNS} for text, gold, tokens in TEXTS]
    for _, described, _ in part.EXAMPLES:
        descriptions += [described] if isinstance(described, dict) else described
    return [answer_of(described, f"record-{number}") for number, described in enumerate(descriptions)]


def answer_of(described: Mapping[str, Any], name: str = "record") -> Answer:
    """An answer from its description: text, gold, tokens, finish; anything else is a column of its record."""
    fields = dict(described)
    known = {key: fields.pop(key) for key in ("text", "gold", "tokens", "finish") if key in fields}
    return Answer(record=Record(name, "prompt_completion", fields, "invented"), **known)


def values_of(reward: Reward, answers: Sequence[Answer]) -> list[float | None]:
    """The rewards of one group, without the parts and passed numbers of a `Judged`.

    Raises:
        Failed: a reward is neither a finite number nor None.
    """
    rewards = [judged.value if isinstance(judged, Judged) else judged for judged in reward.score_group(answers)]
    if len(rewards) != len(answers):
        raise Failed(f"{len(rewards)} values for {len(answers)} answers")
    for number, answer in zip(rewards, answers, strict=True):
        if number is not None and not (isinstance(number, int | float) and math.isfinite(number)):
            raise Failed(f"the answer {texts.short(answer.text)} is worth {number!r}: neither a number nor None")
    return rewards


def check_any_answer(rewards: Sequence[Reward]) -> None:
    """Any text of a model, whatever column its record lacks, gets a number or None in time."""
    for reward in rewards:
        for text in texts.HOSTILE:
            for gold, columns in ((text, {}), ("42", {**COLUMNS, "tests": "assert True"})):
                answer = answer_of({"text": text, "gold": gold, "tokens": len(text), **columns})
                texts.survived(reward, text, lambda answer=answer, reward=reward: values_of(reward, [answer]))


def check_pure(reward: Reward) -> None:
    """The same answers get the same rewards, and their records do not change."""
    answers = sample_answers(type(reward))
    before = copy.deepcopy([answer.record.fields for answer in answers])
    first, second = values_of(reward, answers), values_of(reward, answers)
    if first != second:
        raise Failed("the same answers get other rewards the second time: is there a random call, or memory?")
    if before != [answer.record.fields for answer in answers]:
        raise Failed("the reward changes the columns of a record: copy them")


def check_batch(reward: Reward) -> None:
    """An answer gets the same reward alone and in a batch; one that compares answers, in any order of the group."""
    answers = sample_answers(type(reward))
    together = values_of(reward, answers)
    if reward.compares:
        backwards = values_of(reward, answers[::-1])[::-1]
        if together != backwards:
            raise Failed("with the answers of the group in another order an answer gets another reward")
        return
    # Backwards, so that a reward with memory of the answer before shows as well.
    alone = [values_of(reward, [answer])[0] for answer in answers[::-1]][::-1]
    if together != alone:
        raise Failed("an answer gets another reward alone than in a batch")


def check_examples(part: type[Reward]) -> None:
    """Every example of the part gets the reward that EXAMPLES names."""
    for settings, described, expected in part.EXAMPLES:
        single = isinstance(described, Mapping)
        group, expected_rewards = ([described], [expected]) if single else (described, expected)
        rewards = values_of(part(**settings), [answer_of(example) for example in group])
        for example, wanted, reward in zip(group, expected_rewards, rewards, strict=True):
            if wanted != reward and not (wanted is not None and reward is not None and math.isclose(wanted, reward)):
                shortened = json.dumps(example, ensure_ascii=False)
                raise Failed(f"EXAMPLES says that {shortened} is worth {wanted}, and it is worth {reward}")


def numbers_of(reward: Reward) -> dict[str, Tensor]:
    """All rewards of the sample answers and of each example's group: [N,2], the reward and whether it is None."""
    part = type(reward)
    groups = [sample_answers(part)]
    for _, described, _ in part.EXAMPLES:
        if not isinstance(described, Mapping):
            groups.append([answer_of(example) for example in described])
    rows = []
    for group in groups:
        rows += [[number or 0.0, number is None] for number in values_of(reward, group)]
    return {"values": torch.tensor(rows, dtype=torch.float64)}


def checks(part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of a reward, in the order they are run."""
    if part.MODALITY != "language":
        yield from samples.checks(part)
        return
    rewards = variants(part)
    yield "a number or None for any answer, in time", lambda: check_any_answer(rewards[:1])
    yield "deterministic, its input unchanged", lambda: check_pure(rewards[0])
    yield "alone, in a batch, in any order: the same", lambda: check_batch(rewards[0])
    read_by_engine = Reward.model_fields
    yield "every option changes something", lambda: check_options(rewards, numbers_of, read_by_engine)
    if part.EXAMPLES:
        yield "its examples hold", lambda: check_examples(part)
