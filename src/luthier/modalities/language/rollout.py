"""A rollout as a source of training rows: prompts are drawn, answered, judged and credited whenever rows run out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy
import torch
from torch import Tensor

from luthier.data.batches import Layout, Ordered, data_order
from luthier.engine.assemble import Parts
from luthier.engine.budget import Budget, Position
from luthier.engine.score import Column, score
from luthier.engine.source import Drawn
from luthier.errors import RunError
from luthier.modalities.language.answers import make_judge, make_sampler
from luthier.modalities.language.model import LanguageModel
from luthier.models.policy import TokenPolicy
from luthier.parts import build
from luthier.recipe.settings import RL
from luthier.rewards.base import FAILED, Log, failure_in_words
from luthier.rollouts.base import (
    Advantage,
    Group,
    Judge,
    Prompt,
    Rollout,
    Strategy,
    build_chain,
    credit,
    rows_of,
)
from luthier.rollouts.drive import drive, measures, refill
from luthier.types import Request, Row, Sampler, Sampling, Stream, Trajectory

Columns = dict[str, Column]


@dataclass
class Rollouts:
    """Source of an `rl` step.

    Attributes:
        prompts: what is asked, in the order of the data.
        settings: the recipe's `rl` block.
        columns_of: the score pass: rows → columns that objective and advantages read.
        has_gradient: whether the objective has a gradient on a row.
        decode: token ids to text, for strategies.
    """

    prompts: Sequence[Prompt]
    settings: RL
    seed: int
    budget: Budget
    strategy: Strategy
    chain: Sequence[Advantage]
    sample: Sampler
    judge: Judge
    columns_of: Callable[[list[Row]], Columns]
    has_gradient: Callable[[Row], bool]
    decode: Callable[[Sequence[int]], str]
    end_ids: set[int]
    pending: list[Drawn] = field(default_factory=list)
    rollout: int = 0
    generated: int = 0  # tokens sampled for what is drawn now
    failures: Sequence[str] = ()  # of rewards, in words

    def __post_init__(self) -> None:
        self.strategy.check(self.prompts)
        self.by_id = {prompt.record.id: prompt for prompt in self.prompts}
        rows = [Row(prompt.record.id, numpy.array(prompt.ids, dtype=numpy.int32), {}) for prompt in self.prompts]
        self.ordered = Ordered(rows, self.seed)
        self.memory = self.strategy.start()

    def __len__(self) -> int:
        return len(self.prompts)

    def draw(self, position: Position, records: int) -> Drawn | None:
        if self.pending and self.budget.unit not in ("epochs", "records") and self._spent(position) >= 1.0:
            return None
        self.generated = 0
        if not self.pending:
            self.pending = self._roll(position, records)
        return replace(self.pending.pop(0), generated=self.generated) if self.pending else None

    def updates_left(self, position: Position, records: int) -> int | None:
        left = self.budget.updates(self.ordered, position, records)
        if left is None or self.budget.unit in ("updates", "tokens"):
            return left
        return left * self.settings.updates * self.settings.passes + len(self.pending)

    def _spent(self, position: Position) -> float:
        return self.budget.spent(position, len(self))

    def _roll(self, position: Position, records: int) -> list[Drawn]:
        """One rollout, cut into updates; nothing when the budget is spent."""
        seen: Counter[str] = Counter()
        cursor = replace(position)

        def take(count: int) -> list[Prompt]:
            drawn = self.budget.draw(self.ordered, cursor, count)
            cursor.records += len(drawn)
            return [self.by_id[record_rows[0].record] for record_rows in drawn]

        def play(prompts: Sequence[Prompt]) -> list[Group]:
            return self._play(prompts, seen, self._spent(position))

        if self.settings.refill:
            filled = refill(take, play, records, 1 + self.settings.refill)
            groups, made = filled.groups, filled.all_groups
        else:
            groups = made = play(take(records))
        used = cursor.records - position.records
        if not used:
            return []
        self.rollout += 1
        return self._updates(groups, used, measures(made))

    def _play(self, prompts: Sequence[Prompt], seen: Counter[str], progress: float) -> list[Group]:
        return drive(
            self.strategy,
            prompts,
            self._counted,
            self.judge,
            sampling=self.settings.generate.sampling(),
            seed=self.seed,
            rollout=self.rollout,
            decode=self.decode,
            end_ids=self.end_ids,
            progress=progress,
            state=self.memory,
            occurrences=seen,
        )

    def _counted(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] | None = None
    ) -> list[Trajectory]:
        found = self.sample(requests, sampling, progress)
        self.generated += sum(len(one.ids) for one in found) - sum(len(one.forced_ids) for one in requests)
        return found

    def _updates(self, groups: Sequence[Group], used: int, facts: Mapping[str, float]) -> list[Drawn]:
        """The rollout's rows in keyed order, cut into `updates`, `passes` times; without a signal one empty update."""
        rows = self._rows(groups)
        if not any(self.has_gradient(row) for row in rows):
            return [Drawn([], used, {**facts, "skipped": 1.0})]
        found: list[Drawn] = []
        count = min(self.settings.updates, len(rows))
        for number in range(self.settings.passes):
            order = data_order([row.id for row in rows], self.seed, number)
            pieces = numpy.array_split(numpy.array(order), count)
            found += [Drawn([rows[place] for place in piece], 0) for piece in pieces]
        found[0] = Drawn(found[0].rows, used, {**facts, "skipped": 0.0})
        return found

    def _rows(self, groups: Sequence[Group]) -> list[Row]:
        masked = not self.settings.train_cut_off
        if self.rollout == 1 and self.failures and not any(group.rewards for group in groups):
            raise RunError(
                f"No answer of the first rollout has a reward; the first failure: {self.failures[0]}.",
                "Correct the reward; `luthier check ./mine.py` tries one in a file of your own.",
            )
        if not groups or (self.rollout > 1 and not any(group.rewards for group in groups)):
            return []  # after the first rollout, one without any reward is a bad moment and not a bad recipe
        scored = rows_of(groups, mask_truncated=masked)
        rollout = Rollout.of(groups, self.columns_of(scored) if scored else {})
        advantages = credit(self.chain, rollout)
        columns = {name: [value.astype(numpy.float32) for value in values] for name, values in rollout.columns.items()}
        return rows_of(groups, advantages, columns, mask_truncated=masked)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The updates still to come of the stored rollout, and what the strategy remembers."""
        rows = list({row.id: row for drawn in self.pending for row in drawn.rows}.values())
        meta = {
            "rollout": self.rollout,
            "memory": None if self.memory is None else self.memory.state_dict(),
            "rows": [row.id for row in rows],
            "pending": [[[row.id for row in one.rows], one.records, dict(one.facts)] for one in self.pending],
        }
        return pack(rows), meta

    def load(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.rollout = meta["rollout"]
        if self.memory is not None:
            self.memory.load_state_dict(meta["memory"])
        rows = {row.id: row for row in unpack(meta["rows"], tensors)}
        self.pending = [
            Drawn([rows[name] for name in names], records, facts) for names, records, facts in meta["pending"]
        ]


def pack(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Rows with the same token streams as a few tensors."""
    if not rows:
        return {}
    packed = {"lengths": torch.tensor([len(row) for row in rows])}
    packed["ids"] = torch.from_numpy(numpy.concatenate([row.ids for row in rows]))
    for name in rows[0].streams:
        packed[f"stream/{name}"] = torch.from_numpy(numpy.concatenate([row.streams[name].values for row in rows]))
    return packed


def unpack(names: Sequence[str], tensors: Mapping[str, Tensor]) -> list[Row]:
    """What `pack` packed."""
    if not names:
        return []
    ends = numpy.cumsum(tensors["lengths"].numpy())[:-1]
    pieces = {name: numpy.split(tensor.numpy(), ends) for name, tensor in tensors.items() if name != "lengths"}
    streams = [name.removeprefix("stream/") for name in pieces if name != "ids"]
    return [
        Row(name, pieces["ids"][i], {key: Stream(pieces[f"stream/{key}"][i], "token") for key in streams})
        for i, name in enumerate(names)
    ]


def make_rollouts(
    model: LanguageModel,
    parts: Parts,
    rows: Sequence[Row],
    policy: TokenPolicy,
    micro: int,
    log: Log,
    layout: Layout = "padded",
) -> Rollouts:
    """The source of an `rl` step for the model in training.

    Raises:
        DataError: the strategy needs demonstrations and there are none.
        RecipeError: objective or advantages read a column that nothing can give.
    """
    recipe, renderer = model.recipe, model.renderer
    settings = recipe.settings
    assert isinstance(settings.rl, RL)
    chain = build_chain(settings.rl.advantages, recipe.base)
    wanted = columns_read(settings.rl, parts.needs.reads, chain)

    failures: list[str] = []

    def columns_of(rows: list[Row]) -> Columns:
        return columns_for(policy, rows, wanted, micro, layout)

    def hear(line: dict[str, Any]) -> None:
        if not failures and line.get("event") == FAILED:
            failures.append(f"`{line['reward']}` on {failure_in_words(line)}")
        log(line)

    return Rollouts(
        prompts=[prompt_of_rollout(model, row) for row in rows],
        settings=settings.rl,
        seed=settings.seed,
        budget=parts.budget(recipe),
        strategy=build("strategy", settings.rl.strategy, recipe.base),
        chain=chain,
        sample=make_sampler(model, policy.module, settings.rl.generate),
        judge=make_judge(model, settings.rl.generate, hear),
        columns_of=columns_of,
        has_gradient=parts.objective.has_gradient,
        decode=lambda ids: model.loaded.tokenizer.decode(ids, skip_special_tokens=True),
        end_ids=renderer.end_ids,
        failures=failures,
    )


def columns_read(settings: RL, reads: Sequence[str], chain: Sequence[Advantage]) -> list[str]:
    """The columns that score passes must give to each rollout."""
    wanted = {*reads, *(read for link in chain for read in link.READS)}
    wanted -= {"advantages", "sampler_logprobs", *(made for link in chain for made in link.WRITES)}
    needed = any("old_logprobs" in link.READS for link in chain)
    if settings.updates * settings.passes == 1 and not needed:
        wanted -= {"old_logprobs"}  # with one update per rollout the objective takes its own, detached
    return sorted(name for name in wanted if not name.startswith("logits:"))


def prompt_of_rollout(model: LanguageModel, row: Row) -> Prompt:
    """A training row as a question, its targets as the demonstration."""
    record = model.prepared.records[row.record]
    ids = model.renderer.prompt(record)
    demonstration = row.ids[len(ids) :].tolist() if row.ids[: len(ids)].tolist() == ids else None
    return Prompt(record, ids, demonstration or None)


def columns_for(
    policy: TokenPolicy, rows: list[Row], wanted: Sequence[str], micro: int, layout: Layout = "padded"
) -> Columns:
    """Score passes for the columns that an rl step reads: of the policy as it is, and of its references."""
    columns: Columns = {}
    own = [name for name in wanted if not name.startswith("logprobs:")]
    if own:
        names = {"old_logprobs": "logprobs"}
        found = score(policy, rows, [names.get(name, name) for name in own], micro, layout)
        columns |= {name: found[names.get(name, name)] for name in own}
    for name in wanted:
        if name.startswith("logprobs:"):
            reference = policy.references[name.split(":")[1]]
            columns[name] = score(reference, rows, ["logprobs"], micro, layout)["logprobs"]
    return columns
