"""BREAD: where the model fails, it continues the shortest beginning of the solution that helps."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from luthier.rollouts.base import Context, Group, Memory, Prompt, Rounds, Strategy
from luthier.rollouts.strategies._episodes import cut
from luthier.types import Request, Scored


@dataclass(frozen=True)
class _Probe:
    """A group that was sampled behind a hint of the first `episodes` episodes, and its share of successes."""

    episodes: int
    success: float
    scored: tuple[Scored, ...]


class Branch(Strategy):
    """Branched rollouts: an unaided group first; if it fails, a group behind the shortest hint that helps.

    The solution is cut into at most `episodes` parts, and a hint is the first k of them, never all. A binary search
    over k samples one group per hint. A hint helps if the share p of answers with a reward of at least `success`
    reaches `enough` (default 1 / group). With `early_stop`, the search ends at a hint that helps and has p <= `plenty`
    (default 1 - 1 / group). `warm_start` first tries the record's last hint, and the next shorter one.

    The hint is context: it is neither judged nor trained. A prompt is skipped if no hint helps, or if the best hint
    makes every answer right; `keep_failed` keeps its unaided group, whose advantages are 0.

    Source: arXiv 2506.17211. No code was released, and the paper's bounds on p are not known; these are our choice.
    """

    PAPER: ClassVar[str] = "arXiv 2506.17211"
    NEEDS: ClassVar[tuple[str, ...]] = ("demonstrations",)
    SETTINGS: ClassVar = (
        {},
        {"group": 4},
        {"episodes": 4},
        {"cut": "tokens"},
        {"success": 0.9},
        {"enough": 0.5},
        {"early_stop": True},
        {"early_stop": True, "plenty": 0.1},
        {"warm_start": False},
        {"keep_failed": True},
    )

    group: int = Field(
        8,
        ge=2,
        description="Answers of one group, without or with a hint. More measure low success rates better; the cost "
        "grows in proportion.",
    )
    episodes: int = Field(
        10,
        ge=1,
        description="Parts that the gold answer is cut into; a hint is the first few, never all. More parts make hints "
        "finer and the search longer; the paper has 10.",
    )
    cut: Literal["sentences", "tokens"] = Field(
        "sentences",
        description="Where parts of the gold answer may end: `sentences`, after a sentence or a line, or `tokens`, "
        "anywhere.",
    )
    success: float = Field(
        0.5,
        description="Reward from which an answer counts as a success in the search. Raise it where partial rewards "
        "should not count.",
    )
    enough: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of successes from which a group is trained on. Larger leads to longer hints; null is "
        "1 / `group`, one success.",
    )
    plenty: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of successes up to which `early_stop` accepts a hint. Null is 1 - 1 / `group`: at least one"
        " answer still fails.",
    )
    early_stop: bool = Field(
        False,
        description="Whether the search ends at the first hint with between `enough` and `plenty` successes. It "
        "samples fewer groups and shows longer hints.",
    )
    warm_start: bool = Field(
        True,
        description="Whether the search begins with the record's last hint and the next shorter one, which saves "
        "groups when a record is drawn again.",
    )
    keep_failed: bool = Field(
        False,
        description="Whether a prompt without a usable hint keeps its unaided group, whose advantages are 0. False "
        "leaves it out.",
    )

    def start(self) -> Memory:
        return Memory()

    def rounds(self, prompt: Prompt, ctx: Context) -> Rounds:
        enough = self.enough or 1 / self.group
        scored = yield [prompt.request() for _ in range(self.group)]
        unaided = self._probe(0, scored)
        memory = ctx.state.values
        if unaided.success >= enough:
            memory.pop(prompt.record.id, None)  # solved unaided: the next search starts afresh
            return [Group(prompt, unaided.scored, facts=_facts(unaided, 0, 0.0))]
        decode = None if self.cut == "tokens" else ctx.decode
        solution = list(prompt.demonstration or ())
        ends = cut(solution, self.episodes, decode)
        probes = yield from self._search(prompt, solution, ends, memory.get(prompt.record.id), enough)
        best = _chosen(probes, enough)
        if best is None:
            facts = _facts(unaided, len(probes), 0.0)
            return [Group(prompt, unaided.scored, facts=facts)] if self.keep_failed else []
        if self.warm_start:
            memory[prompt.record.id] = best.episodes
        facts = _facts(unaided, len(probes), best.episodes / (len(ends) + 1))
        return [Group(prompt, best.scored, tuple(solution[: ends[best.episodes - 1]]), facts)]

    def _search(
        self, prompt: Prompt, solution: list[int], ends: Sequence[int], last: int | None, enough: float
    ) -> Generator[list[Request], list[Scored], list[_Probe]]:
        """Sample groups behind hints until the shortest hint that helps is known; returns all of them, in order.

        Args:
            prompt: the prompt.
            solution: token ids of the gold answer.
            ends: token index in the solution where each episode but the last ends.
            last: episodes of the record's last hint, if known.
            enough: share of successes from which a hint helps.
        """
        low, high = 1, len(ends)
        probes: list[_Probe] = []
        # Two groups end the search if the last hint helps again and the next shorter one does not.
        guesses = [last, last - 1] if self.warm_start and last is not None else []
        while low <= high:
            guesses = [guess for guess in guesses if low <= guess <= high]
            episodes = guesses.pop(0) if guesses else (low + high) // 2
            hint = solution[: ends[episodes - 1]]
            scored = yield [prompt.request(context=hint) for _ in range(self.group)]
            probes.append(self._probe(episodes, scored))
            if probes[-1].success < enough:
                low = episodes + 1
                continue
            high = episodes - 1
            if self.early_stop and probes[-1].success <= (self.plenty or 1 - 1 / self.group):
                break
        return probes

    def _probe(self, episodes: int, scored: Sequence[Scored]) -> _Probe:
        right = sum(answer.reward is not None and answer.reward >= self.success for answer in scored)
        return _Probe(episodes, right / len(scored), tuple(scored))


def _facts(unaided: _Probe, probes: int, hint: float) -> dict[str, float]:
    """Success without a hint, the number of groups behind hints, and the share of the episodes in the chosen hint."""
    return {"unaided": unaided.success, "probes": float(probes), "hint": hint}


def _chosen(probes: Sequence[_Probe], enough: float) -> _Probe | None:
    """The shortest hint that helps; if all its answers are right, the longest shorter hint with some right answers.

    A group whose answers are all right has advantages of 0 and teaches nothing.
    """
    feasible = [probe for probe in probes if probe.success >= enough]
    if not feasible:
        return None
    best = min(feasible, key=lambda probe: probe.episodes)
    if best.success < 1:
        return best
    shorter = [probe for probe in probes if probe.episodes < best.episodes and probe.success > 0]
    return max(shorter, key=lambda probe: probe.episodes, default=None)
