"""A rollout as a source of training rows: prompts are drawn, answered, judged and credited whenever rows run out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from torch import Tensor

from luthier.data.batches import Layout, Ordered
from luthier.engine.assemble import Parts
from luthier.engine.budget import Position
from luthier.engine.score import Column, score
from luthier.engine.source import Drawn
from luthier.errors import RunError
from luthier.modalities.language.answers import make_judge, make_sampler
from luthier.modalities.language.model import LanguageModel
from luthier.modalities.rollout import RolloutSource
from luthier.models.policy import TokenPolicy
from luthier.parts import build
from luthier.recipe.settings import RL
from luthier.rewards.base import FAILED, Log, failure_in_words
from luthier.rollouts.base import Advantage, Group, Prompt, Rollout, build_chain, credit, rows_of
from luthier.rollouts.drive import drive, measures, refill
from luthier.types import Request, Row, Sampling, Stream, Trajectory


@dataclass(frozen=True)
class ScorePass:
    """Forwards over the rows of a rollout for the columns that objective and advantages read.

    Attributes:
        columns: `old_logprobs` and other columns of the policy; `logprobs:<reference>`.
        micro: positions per forward.
    """

    policy: TokenPolicy
    columns: Sequence[str]
    micro: int
    layout: Layout = "padded"

    def __call__(self, rows: list[Row]) -> dict[str, Column]:
        """Column name → row id → [T], under the policy and the references as they are now."""
        of_policy = {name: name for name in self.columns if not name.startswith("logprobs:")}
        if "old_logprobs" in of_policy:
            of_policy["old_logprobs"] = "logprobs"  # the policy has not moved since it drew the answers
        columns: dict[str, Column] = {}
        if of_policy:
            scored = score(self.policy, rows, list(of_policy.values()), self.micro, self.layout)
            columns |= {name: scored[quantity] for name, quantity in of_policy.items()}
        for name in self.columns:
            if name.startswith("logprobs:"):
                reference = self.policy.references[name.split(":")[1]]
                columns[name] = score(reference, rows, ["logprobs"], self.micro, self.layout)["logprobs"]
        return columns


class RewardLog:
    """A log that hands every event on, and keeps the first failure of a reward in words (empty: none)."""

    def __init__(self, log: Log):
        self.log = log
        self.first_failure = ""

    def __call__(self, event: dict[str, Any]) -> None:
        if not self.first_failure and event.get("event") == FAILED:
            self.first_failure = f"`{event['reward']}` on {failure_in_words(event)}"
        self.log(event)


class Rollouts(RolloutSource):
    """Source of an `rl` step of a language model.

    A rollout gives `updates` x `passes` updates; those still to come are `pending`, and a checkpoint holds them.

    Args:
        rows: the training rows whose prompts are asked, their targets being the demonstrations.
        policy: the model in training, which answers unless the recipe names another sampler.
        micro: positions per forward of the score passes.
        log: takes the events of rewards.

    Raises:
        DataError: the strategy needs demonstrations and there are none.
        RecipeError: objective or advantages read a column that nothing can give.
    """

    def __init__(
        self,
        model: LanguageModel,
        parts: Parts,
        rows: Sequence[Row],
        policy: TokenPolicy,
        micro: int,
        log: Log,
        layout: Layout = "padded",
    ):
        recipe = model.recipe
        assert isinstance(recipe.settings.rl, RL)
        super().__init__([prompt_of_rollout(model, row) for row in rows], recipe.settings.seed, parts.budget(recipe))
        self.model, self.objective, self.settings = model, parts.objective, recipe.settings.rl
        self.strategy = build("strategy", self.settings.strategy, recipe.base)
        self.strategy.check(self.prompts)
        self.memory = self.strategy.start()
        self.chain = build_chain(self.settings.advantages, recipe.base)
        self.score_pass = ScorePass(policy, columns_read(self.settings, parts.needs.reads, self.chain), micro, layout)
        self.reward_log = RewardLog(log)
        self.sampler = make_sampler(model, policy.module, self.settings.generate)
        self.judge = make_judge(model, self.settings.generate, self.reward_log)

        self.by_id = {prompt.record.id: prompt for prompt in self.prompts}
        # Budget and order work on rows, so every prompt becomes one.
        asked = [Row(prompt.record.id, numpy.array(prompt.ids, dtype=numpy.int32), {}) for prompt in self.prompts]
        self.ordered = Ordered(asked, self.seed)
        self.pending: list[Drawn] = []
        self.rollout = 0
        self.generated = 0  # tokens sampled for the update that is being drawn

    def draw(self, position: Position, records: int) -> Drawn | None:
        # A budget of updates, tokens or seconds may end in the middle of a rollout. One of epochs or records was used
        # up when the prompts were drawn, and the rollout's other updates are still due.
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
        """One rollout of `records` prompts, cut into updates; nothing when the budget is spent."""
        occurrences: Counter[str] = Counter()
        cursor = replace(position)

        def draw_prompts(count: int) -> list[Prompt]:
            drawn = self.budget.draw(self.ordered, cursor, count)
            cursor.records += len(drawn)
            return [self.by_id[record_rows[0].record] for record_rows in drawn]

        def answer(prompts: Sequence[Prompt]) -> list[Group]:
            return self._drive(prompts, occurrences, self._spent(position))

        if self.settings.refill:
            filled = refill(draw_prompts, answer, records, 1 + self.settings.refill)
            groups, groups_drawn = filled.groups, filled.all_groups
        else:
            groups = groups_drawn = answer(draw_prompts(records))
        used = cursor.records - position.records
        if not used:
            return []
        self.rollout += 1
        return self._updates(groups, used, measures(groups_drawn))

    def _drive(self, prompts: Sequence[Prompt], occurrences: Counter[str], progress: float) -> list[Group]:
        return drive(
            self.strategy,
            prompts,
            self._sample_and_count,
            self.judge,
            sampling=self.settings.generate.sampling(),
            seed=self.seed,
            rollout=self.rollout,
            decode=self.model.decode,
            end_ids=self.model.renderer.end_ids,
            progress=progress,
            state=self.memory,
            occurrences=occurrences,
        )

    def _sample_and_count(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] | None = None
    ) -> list[Trajectory]:
        trajectories = self.sampler(requests, sampling, progress)
        self.generated += sum(len(trajectory.ids) for trajectory in trajectories)
        self.generated -= sum(len(request.forced_ids) for request in requests)
        return trajectories

    def _updates(self, groups: Sequence[Group], used: int, facts: Mapping[str, float]) -> list[Drawn]:
        """The rollout's rows in keyed order, cut into `updates`, `passes` times; without a signal one empty update."""
        rows = self._rows(groups)
        if not any(self.objective.has_gradient(row) for row in rows):
            return [Drawn([], used, {**facts, "skipped": 1.0}, skipped_tokens=_tokens_of(groups))]
        count = min(self.settings.updates, len(rows))
        total = count * self.settings.passes
        updates: list[Drawn] = []
        for number in range(self.settings.passes):
            shuffled = self.shuffled(rows, number)
            for piece in numpy.array_split(numpy.arange(len(rows)), count):
                still_to_come = total - 1 - len(updates)
                updates.append(Drawn([shuffled[index] for index in piece], 0, unspent=used * still_to_come / total))
        # The prompts are drawn once, with the first update, and used up by all of them alike.
        updates[0] = replace(updates[0], records=used, facts={**facts, "skipped": 0.0})
        return updates

    def _rows(self, groups: Sequence[Group]) -> list[Row]:
        """The training rows of a rollout, with advantages and the columns that the objective reads."""
        masked = not self.settings.train_cut_off
        rewarded = any(group.rewards for group in groups)
        if self.rollout == 1 and self.reward_log.first_failure and not rewarded:
            raise RunError(
                f"No answer of the first rollout has a reward; the first failure: {self.reward_log.first_failure}.",
                "Correct the reward; `luthier check ./mine.py` tries one in a file of your own.",
            )
        # A later rollout without any reward is bad luck, and not a bad recipe: training goes on with the next.
        if not groups or (self.rollout > 1 and not rewarded):
            return []
        unscored = rows_of(groups, mask_truncated=masked)
        rollout = Rollout.of(groups, self.score_pass(unscored) if unscored else {})
        advantages = credit(self.chain, rollout)
        columns = {}
        for name, arrays in rollout.columns.items():
            columns[name] = [array.astype(numpy.float32) for array in arrays]
        return rows_of(groups, advantages, columns, mask_truncated=masked)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The updates still to come of the rollout in force, and what the strategy remembers."""
        rows: dict[str, Row] = {}  # several passes train on the same rows
        pending = []
        for drawn in self.pending:
            names = [row.id for row in drawn.rows]
            rows.update(zip(names, drawn.rows, strict=True))
            pending.append([names, drawn.records, dict(drawn.facts), drawn.unspent])
        memory = None if self.memory is None else self.memory.state_dict()
        return pack(list(rows.values())), {
            "rollout": self.rollout,
            "memory": memory,
            "rows": list(rows),
            "pending": pending,
        }

    def load(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.rollout = meta["rollout"]
        if self.memory is not None:
            self.memory.load_state_dict(meta["memory"])
        rows = {row.id: row for row in unpack(meta["rows"], tensors)}
        self.pending = []
        for names, records, facts, *unspent in meta["pending"]:  # older checkpoints end before the last
            self.pending.append(Drawn([rows[name] for name in names], records, facts, unspent=sum(unspent)))


def _tokens_of(groups: Sequence[Group]) -> int:
    """Tokens of all prompts and answers, at least 1: what a rollout costs that teaches nothing."""
    tokens = 1
    for group in groups:
        tokens += sum(len(group.prompt.ids) + len(member.trajectory.ids) for member in group.members)
    return tokens


def pack(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Rows that have the same token streams, joined end to end: a few tensors rather than several per row."""
    if not rows:
        return {}
    packed = {"lengths": torch.tensor([len(row) for row in rows])}
    packed["ids"] = torch.from_numpy(numpy.concatenate([row.ids for row in rows]))
    for name in rows[0].streams:
        packed[f"stream/{name}"] = torch.from_numpy(numpy.concatenate([row.streams[name].values for row in rows]))
    return packed


def unpack(names: Sequence[str], tensors: Mapping[str, Tensor]) -> list[Row]:
    """The rows that `pack` joined, under these ids."""
    if not names:
        return []
    ends = numpy.cumsum(tensors["lengths"].numpy())[:-1]
    pieces = {name: numpy.split(tensor.numpy(), ends) for name, tensor in tensors.items() if name != "lengths"}
    keys = [key for key in pieces if key != "ids"]
    rows = []
    for index, name in enumerate(names):
        streams = {key.removeprefix("stream/"): Stream(pieces[key][index], "token") for key in keys}
        rows.append(Row(name, pieces["ids"][index], streams))
    return rows


def columns_read(settings: RL, reads: Sequence[str], chain: Sequence[Advantage]) -> list[str]:
    """The columns that score passes must give to each rollout."""
    wanted = set(reads).union(*(link.READS for link in chain))
    wanted -= {"advantages", "sampler_logprobs"}.union(*(link.WRITES for link in chain))
    chain_reads_old = any("old_logprobs" in link.READS for link in chain)
    if settings.updates * settings.passes == 1 and not chain_reads_old:
        wanted -= {"old_logprobs"}  # with one update per rollout the objective uses its own, detached
    return sorted(name for name in wanted if not name.startswith("logits:"))


def prompt_of_rollout(model: LanguageModel, row: Row) -> Prompt:
    """A training row as a question, its targets as the demonstration."""
    record = model.prepared.records[row.record]
    ids = model.renderer.prompt(record)
    # Only a row that begins with the rendered prompt can be split there into a question and its answer.
    demonstration = row.ids[len(ids) :].tolist() if row.ids[: len(ids)].tolist() == ids else None
    return Prompt(record, ids, demonstration or None)
