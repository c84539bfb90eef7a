"""BREAD: where the model fails, it goes on from the shortest useful part of the solution."""

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
    """A group that was sampled behind the first `shown` episodes, and its share of successes."""

    shown: int
    success: float
    scored: tuple[Scored, ...]


class Branch(Strategy):
    """Branched rollouts: an unaided group first; if it fails, a group behind the shortest hint that helps.

    The solution is cut into at most `episodes` parts; hints are its first k parts, never the last. A binary search
    over k probes one group at a time. p is the share of answers with a reward of `success` or more, `enough` (1 /
    group unless set) is what p has to reach. With `early_stop` the search ends at a hint with p <= `plenty`
    (1 - 1 / group unless set). `warm_start` first tries the hint that was used last time, and the next shorter one.
    The hint is context: it is neither judged nor trained. A prompt that no hint helps, or whose best hint makes
    every answer right, is skipped (`keep_failed` keeps its unaided group, whose advantages are 0).

    Source: arXiv 2506.17211. No code was released; numbers of the band are not known, those here are chosen.
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
        description="Answers sampled at once, without a hint or behind one. More tells low rates of success apart, at "
        "a cost in proportion.",
    )
    episodes: int = Field(
        10,
        ge=1,
        description="Parts that the gold answer is cut into; a hint is the first few, never all. More makes hints "
        "finer and the search longer; the paper has 10.",
    )
    cut: Literal["sentences", "tokens"] = Field(
        "sentences",
        description="Where parts of the gold answer may end: `sentences`, behind a sentence or a line, or `tokens`, "
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
        description="Share of successes that makes a group worth learning from. Larger leads to longer hints; null is "
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
        "groups when a record comes again.",
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
            memory.pop(prompt.record.id, None)
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
            memory[prompt.record.id] = best.shown
        facts = _facts(unaided, len(probes), best.shown / (len(ends) + 1))
        return [Group(prompt, best.scored, tuple(solution[: ends[best.shown - 1]]), facts)]

    def _search(
        self, prompt: Prompt, solution: list[int], ends: Sequence[int], last: int | None, enough: float
    ) -> Generator[list[Request], list[Scored], list[_Probe]]:
        """Probe hints until the shortest that is enough is known; all probes, in order."""
        low, high = 1, len(ends)
        probes: list[_Probe] = []
        first = [last, last - 1] if self.warm_start and last is not None else []
        while low <= high:
            first = [shown for shown in first if low <= shown <= high]
            shown = first.pop(0) if first else (low + high) // 2
            hint = solution[: ends[shown - 1]]
            scored = yield [prompt.request(context=hint) for _ in range(self.group)]
            probes.append(self._probe(shown, scored))
            if probes[-1].success < enough:
                low = shown + 1
                continue
            high = shown - 1
            if self.early_stop and probes[-1].success <= (self.plenty or 1 - 1 / self.group):
                break
        return probes

    def _probe(self, shown: int, scored: Sequence[Scored]) -> _Probe:
        right = sum(one.reward is not None and one.reward >= self.success for one in scored)
        return _Probe(shown, right / len(scored), tuple(scored))


def _facts(unaided: _Probe, probes: int, hint: float) -> dict[str, float]:
    """Success without a hint, groups sampled behind hints, and the share of the episodes that was shown."""
    return {"unaided": unaided.success, "probes": float(probes), "hint": hint}


def _chosen(probes: Sequence[_Probe], enough: float) -> _Probe | None:
    """The shortest hint that was enough; where all its answers are right, the longest shorter one with some right."""
    feasible = [probe for probe in probes if probe.success >= enough]
    if not feasible:
        return None
    best = min(feasible, key=lambda probe: probe.shown)
    if best.success < 1:
        return best
    shorter = [probe for probe in probes if probe.shown < best.shown and probe.success > 0]
    return max(shorter, key=lambda probe: probe.shown, default=None)
