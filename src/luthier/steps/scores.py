"""Scores of answers under one model: how likely each is, how sure the model, what the judge says."""

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
"""What a line says of which answer it is about; all else are numbers about it."""


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

    `sum_logprob` is Σ_t log p(y_t | x, y_<t) over the `tokens` targets of its row, the token that ends the answer
    included, at temperature 1, `mean_logprob` that by `tokens`, `entropy` the mean entropy (nats) of the
    distributions that the targets were predicted from. `reward` is what the judge said when the answer was generated;
    gold answers, and with `judge_again` all, are judged now.

    Args:
        tokens: positions per forward.
    """
    wanted = ["logprobs", *(["entropy"] if entropy else [])]
    columns = score(policy, [one.row for one in candidates], wanted, tokens)
    rewards = _rewards(workspace, candidates, judge_again, log)
    return [
        {
            "record": one.record.id,
            "row": one.row.id,
            "source": one.source,
            **_likelihoods(one.row, {name: column[one.row.id] for name, column in columns.items()}),
            "reward": rewards[one.row.id],
        }
        for one in candidates
    ]


def _likelihoods(row: Row, values: Mapping[str, Any]) -> dict[str, Any]:
    total, count = float(values["logprobs"].sum(dtype="float64")), row.targets
    found = {"sum_logprob": total, "mean_logprob": total / count if count else None, "tokens": count}
    if "entropy" in values:
        found["entropy"] = float(values["entropy"].sum(dtype="float64")) / count if count else None
    return found


def _rewards(
    workspace: LanguageWorkspace, candidates: Sequence[Candidate], again: bool, log: Log
) -> dict[str, float | None]:
    """Row id → reward; answers to one record are judged together."""
    found = {one.row.id: one.reward for one in candidates}
    groups: dict[str, list[Candidate]] = {}
    for one in candidates:
        if (again or one.source == "data") and one.record.shape != "text":
            groups.setdefault(one.record.id, []).append(one)
    if not groups:
        return found
    judge = make_judge(workspace, workspace.recipe.settings.generate, log)
    asked = [_asked(workspace, group) for group in groups.values()]
    for group, judged in zip(groups.values(), judge(asked), strict=True):
        found |= {one.row.id: scored.reward for one, scored in zip(group, judged, strict=True)}
    return found


def _asked(workspace: LanguageWorkspace, group: Sequence[Candidate]) -> tuple[Prompt, list[Trajectory]]:
    """A record's answers as they were sampled; one without a token or text that ends it was cut off."""
    prompt, ends = workspace.renderer.prompt(group[0].record), workspace.renderer.end_ids
    stop = workspace.recipe.settings.generate.stop
    answers = []
    for one in group:
        ids = one.row.ids[len(prompt) :].tolist()
        ended = (ids and ids[-1] in ends) or any(text in one.answer for text in stop)
        answers.append(Trajectory(ids, "stop" if ended else "length", one.record.id))
    return Prompt(group[0].record, prompt), answers


def scored_columns(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Name → row id → value, for subsets that read them; NaN where there is none."""
    names = [name for name in (lines[0] if lines else ()) if name not in IDENTITY]
    return {name: {line["row"]: math.nan if line[name] is None else line[name] for line in lines} for name in names}


def write_scores(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """One line per answer, whole or not at all."""
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def scores_facts(lines: Sequence[Mapping[str, Any]], looked: int) -> dict[str, Any]:
    """What run.json says of them: the log-probability is per token over all answers."""
    tokens = sum(line["tokens"] for line in lines)
    rewards = [line["reward"] for line in lines if line["reward"] is not None]
    return {
        "answers": len(lines),
        "tokens": tokens,
        "looked_rows": len(lines),
        "looked_tokens": looked,
        "mean_logprob": math.fsum(line["sum_logprob"] for line in lines) / tokens if tokens else None,
        "reward": sum(rewards) / len(rewards) if rewards else None,
    }
