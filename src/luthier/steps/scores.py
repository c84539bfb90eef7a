"""Scores of answers under one model: log-probability, entropy and reward of each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.engine.score import score
from luthier.modalities.language.answers import make_judge
from luthier.modalities.language.workspace import LanguageWorkspace
from luthier.models.policy import TokenPolicy
from luthier.rewards.base import Log
from luthier.rollouts.base import Prompt
from luthier.run_folder import write_text
from luthier.types import Candidate, Row, Trajectory

IDENTITY = ("record", "row", "source")
"""Keys of a line that identify the answer; the other keys are numbers about the answer."""


def score_candidates(
    workspace: LanguageWorkspace,
    policy: TokenPolicy,
    candidates: Sequence[Candidate],
    *,
    entropy: bool,
    judge_again: bool,
    tokens: int,
    log: Log = lambda line: None,
) -> list[dict[str, Any]]:
    """One line per candidate, in their order.

    The keys of a line: `sum_logprob` is Σ_t log p(y_t | x, y_<t) in nats at temperature 1, over the `tokens` targets of
    the row, including the token that ends the answer; `mean_logprob` is `sum_logprob` / `tokens`; `entropy` is the
    mean entropy (nats) of the distributions that the targets are predicted from; `reward` is the answer's reward.

    Args:
        entropy: whether to compute entropies.
        judge_again: judge all answers now; otherwise only gold answers, and the others keep their reward.
        tokens: positions per forward.
        log: is called for each failure of a reward.
    """
    names = ["logprobs", *(["entropy"] if entropy else [])]
    columns = score(policy, [candidate.row for candidate in candidates], names, tokens)
    rewards = _rewards(workspace, candidates, judge_again, log)
    lines = []
    for candidate in candidates:
        row = candidate.row
        line = {"record": candidate.record.id, "row": row.id, "source": candidate.source}
        line |= _likelihoods(row, {name: column[row.id] for name, column in columns.items()})
        lines.append({**line, "reward": rewards[row.id]})
    return lines


def _likelihoods(row: Row, per_target: Mapping[str, Any]) -> dict[str, Any]:
    """Sums and means over a row's targets, in float64: a long answer sums hundreds of float32 numbers."""
    total, count = float(per_target["logprobs"].sum(dtype="float64")), row.targets
    likelihoods = {"sum_logprob": total, "mean_logprob": total / count if count else None, "tokens": count}
    if "entropy" in per_target:
        likelihoods["entropy"] = float(per_target["entropy"].sum(dtype="float64")) / count if count else None
    return likelihoods


def _rewards(
    workspace: LanguageWorkspace, candidates: Sequence[Candidate], again: bool, log: Log
) -> dict[str, float | None]:
    """Row id → reward. Answers to one record are judged together, because a reward may compare them."""
    rewards = {candidate.row.id: candidate.reward for candidate in candidates}
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        if (again or candidate.source == "data") and candidate.record.shape != "text":  # text has no prompt
            groups.setdefault(candidate.record.id, []).append(candidate)
    if not groups:
        return rewards
    judge = make_judge(workspace, workspace.recipe.settings.generate, log)
    sampled = [_as_sampled(workspace, group) for group in groups.values()]
    for group, judged in zip(groups.values(), judge(sampled), strict=True):
        for candidate, scored in zip(group, judged, strict=True):
            rewards[candidate.row.id] = scored.reward
    return rewards


def _as_sampled(workspace: LanguageWorkspace, group: Sequence[Candidate]) -> tuple[Prompt, list[Trajectory]]:
    """A record's answers as trajectories; an answer without an end token or a stop string was cut off ("length")."""
    prompt, ends = workspace.renderer.prompt(group[0].record), workspace.renderer.end_ids
    stop = workspace.recipe.settings.generate.stop
    answers = []
    for candidate in group:
        ids = candidate.row.ids[len(prompt) :].tolist()
        ended = (ids and ids[-1] in ends) or any(text in candidate.answer for text in stop)
        answers.append(Trajectory(ids, "stop" if ended else "length", candidate.record.id))
    return Prompt(group[0].record, prompt), answers


def scored_columns(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Name → row id → number, for subsets; NaN for an answer without the number, such as one without a reward."""
    names = [name for name in (lines[0] if lines else ()) if name not in IDENTITY]
    columns: dict[str, dict[str, float]] = {name: {} for name in names}
    for line in lines:
        for name in names:
            columns[name][line["row"]] = math.nan if line[name] is None else line[name]
    return columns


def write_scores(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write scores.jsonl at once: a run that is killed leaves all lines or no file."""
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def scores_facts(lines: Sequence[Mapping[str, Any]], positions: int) -> dict[str, Any]:
    """The facts of a score step for run.json; `mean_logprob` is per token over all answers.

    Args:
        positions: tokens that the model read, prompts included.
    """
    tokens = sum(line["tokens"] for line in lines)
    rewards = [line["reward"] for line in lines if line["reward"] is not None]
    return {
        "answers": len(lines),
        "tokens": tokens,
        "looked_rows": len(lines),
        "looked_tokens": positions,
        "mean_logprob": math.fsum(line["sum_logprob"] for line in lines) / tokens if tokens else None,
        "reward": sum(rewards) / len(rewards) if rewards else None,
    }
