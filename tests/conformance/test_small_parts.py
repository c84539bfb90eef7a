"""Rewards, strategies, subsets: planted faults are caught by the check meant for them; the pages' parts pass."""

import json
import re
from itertools import count
from pathlib import Path
from typing import ClassVar

import numpy
import pytest
from rich.console import Console

from luthier.conformance.base import Failed
from luthier.conformance.matrix import check_part, checks_of
from luthier.rewards.base import Reward
from luthier.rollouts.base import Group, Memory, Strategy
from luthier.select.records.base import Subset, by_record

DOCS = Path(__file__).parents[2] / "docs"
CALLS = count()


class Reads(Reward):
    """Fails where there is no JSON."""

    def score(self, answer):
        return float(json.loads(answer.text) == 1)


class NotFinite(Reward):
    def score(self, answer):
        return float(numpy.log(len(answer.text))) if answer.text else float("-inf")


class Backtracks(Reward):
    def score(self, answer):
        return float(re.search(r"(a|a)*\Z", answer.text + "b") is None)


class RandomReward(Reward):
    def score(self, answer):
        return float(next(CALLS))


class Scribbles(Reward):
    def score(self, answer):
        answer.record.fields["seen"] = 1
        return 1.0


class Ranks(Reward):
    """Compares by place."""

    def score_group(self, answers):
        return [float(index) for index in range(len(answers))]


class Boasts(Reward):
    EXAMPLES: ClassVar = (({}, {"text": "a", "gold": "a"}, 1.0),)

    def score(self, answer):
        return 0.5


class UnreadReward(Reward):
    SETTINGS: ClassVar = ({}, {"bonus": 2.0})
    bonus: float = 1.0

    def score(self, answer):
        return 1.0


class Forgets(Strategy):
    """Asks without the prompt."""

    def rounds(self, prompt, ctx):
        scored = yield [prompt.request()]
        other = type(prompt)(prompt.record, (1,))
        more = yield [other.request()]
        return [Group(prompt, (*scored, *more))]


class Mixes(Strategy):
    """Says nothing of the context that some members saw."""

    def rounds(self, prompt, ctx):
        scored = yield [prompt.request(), prompt.request(context=[7])]
        return [Group(prompt, tuple(scored))]


class Twice(Strategy):
    def rounds(self, prompt, ctx):
        scored = yield [prompt.request()]
        return [Group(prompt, tuple(scored)), Group(prompt, tuple(scored))]


class RandomStrategy(Strategy):
    def rounds(self, prompt, ctx):
        scored = yield [prompt.request() for _ in range(1 + next(CALLS) % 7)]
        return [Group(prompt, tuple(scored))]


class Gossips(Strategy):
    """What one prompt did decides about the next."""

    def start(self):
        return Memory()

    def rounds(self, prompt, ctx):
        ctx.state.values["asked"] = ctx.state.values.get("asked", 0) + 1
        scored = yield [prompt.request() for _ in range(1 + ctx.state.values["asked"] % 2)]
        return [Group(prompt, tuple(scored))]


ASKED: dict[str, int] = {}


class Elsewhere(Strategy):
    """Remembers outside its memory: what each prompt was asked, since the process began."""

    def rounds(self, prompt, ctx):
        ASKED[prompt.record.id] = ASKED.get(prompt.record.id, 0) + 1
        scored = yield [prompt.request() for _ in range(1 + (ASKED[prompt.record.id] > 3))]
        return [Group(prompt, tuple(scored))]


class Loses(Memory):
    def state_dict(self):
        return {}


class Careless(Strategy):
    """Its memory is not in its checkpoint."""

    def start(self):
        return Loses()

    def rounds(self, prompt, ctx):
        asked = ctx.state.values[prompt.record.id] = ctx.state.values.get(prompt.record.id, 0) + 1
        scored = yield [prompt.request() for _ in range(asked)]
        return [Group(prompt, tuple(scored))]


class Needs(Strategy):
    """Uses demonstrations and lets prompts without them pass."""

    NEEDS: ClassVar = ("demonstrations",)

    def check(self, prompts):
        pass

    def rounds(self, prompt, ctx):
        scored = yield [prompt.request()]
        return [Group(prompt, tuple(scored))]


class UnreadStrategy(Strategy):
    SETTINGS: ClassVar = ({}, {"group": 3})
    group: int = 2

    def rounds(self, prompt, ctx):
        scored = yield [prompt.request()]
        return [Group(prompt, tuple(scored))]


class Repeats(Subset):
    def choose(self, candidates, columns, seed):
        return [0, 0] if candidates else []


class Outside(Subset):
    def choose(self, candidates, columns, seed):
        return [len(candidates)]


class RandomSubset(Subset):
    def choose(self, candidates, columns, seed):
        return [next(CALLS) % 5] if candidates else []


class FirstHalf(Subset):
    def choose(self, candidates, columns, seed):
        return [places[0] for places in list(by_record(candidates).values())[:6]]


class Overwrites(Subset):
    READS: ClassVar = ("logprobs",)

    def choose(self, candidates, columns, seed):
        for candidate in candidates:
            columns["logprobs"][candidate.row.id][0] = 0.0
        return list(range(len(candidates)))


class UnreadSubset(Subset):
    SETTINGS: ClassVar = ({}, {"top": 3})
    top: int = 1

    def choose(self, candidates, columns, seed):
        return list(range(len(candidates)))


@pytest.mark.parametrize(
    "slot, part, check, words",
    [
        ("reward", Reads, "a number or None", "makes it fail: JSONDecodeError"),
        ("reward", NotFinite, "a number or None", "is worth -inf"),
        ("reward", Backtracks, "a number or None", "takes more than"),
        ("reward", RandomReward, "deterministic", "random call"),
        ("reward", Scribbles, "deterministic", "copy them"),
        ("reward", Ranks, "alone, in a batch", "in another order"),
        ("reward", RandomReward, "alone, in a batch", "alone than in a batch"),
        ("reward", UnreadReward, "every option", "`bonus`"),
        ("reward", Boasts, "its examples", "is worth 1.0, and it is worth 0.5"),
        ("strategy", Forgets, "requests and groups", "does not begin with its prompt"),
        ("strategy", Mixes, "requests and groups", "a context other than"),
        ("strategy", Twice, "requests and groups", "in two groups"),
        ("strategy", RandomStrategy, "deterministic", "random call"),
        ("strategy", Gossips, "independent", "reach from prompt to prompt"),
        ("strategy", Careless, "memory", "after a resume"),
        ("strategy", UnreadStrategy, "every option", "`group`"),
        ("strategy", Needs, "without demonstrations", "does not refuse prompts without them"),
        ("subset", Repeats, "keeps candidates", "kept twice"),
        ("subset", Outside, "keeps candidates", "no indices of"),
        ("subset", RandomSubset, "deterministic", "random call"),
        ("subset", Overwrites, "deterministic", "copy them"),
        ("subset", FirstHalf, "independent", "in another order"),
        ("subset", UnreadSubset, "every option", "`top`"),
    ],
)
def test_planted_fault_is_caught(slot, part, check, words, monkeypatch):
    monkeypatch.setattr("luthier.conformance.texts.PATIENCE", 0.3)
    monkeypatch.setattr("luthier.conformance.texts.HOSTILE", ("", "9", "a" * 50))
    run_check = next(function for name, function in checks_of(slot, part) if name.startswith(check))
    with pytest.raises(Failed, match=re.escape(words)):
        run_check()


def test_memory_outside_the_part_is_caught():
    ASKED.clear()
    with pytest.raises(Failed, match="two rollouts with one seed differ"):
        next(check for name, check in checks_of("strategy", Elsewhere) if name.startswith("deterministic"))()


@pytest.mark.parametrize("page, name, lines", [("rewards.md", "mine", 5), ("rollouts.md", "retry", 6)])
def test_the_part_on_the_page_passes_the_matrix(tmp_path, page, name, lines):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / f"{name}.py").write_text(
        f'"""From the page."""\n{next(block for block in blocks if f"{name}.py" in block)}'
    )
    console = Console(record=True, width=200)
    check_part(tmp_path / f"{name}.py", console)
    printed = console.export_text()
    assert printed.count("  pass  ") == lines and f"{name.capitalize()} passes the matrix" in printed
