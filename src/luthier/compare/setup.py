"""The set-up of a comparison: settings that are the same, settings that differ, and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from luthier.compare.plan import Plan
from luthier.compare.runs import RunOutcome
from luthier.recipe.fingerprint import NOT_PART_OF_A_RUN
from luthier.recipe.merge import dotted

UNEQUAL_DATA = 0.005  # share by which the data of two methods may differ without a warning


def setup(plan: Plan, runs: Sequence[RunOutcome]) -> dict[str, Any]:
    """Model, data, settings, versions and hardware, for the report's last section and setup.md."""
    done = [run.record for run in runs if run.done]
    first = done[0] if done else {}
    return {
        "model": dict(plan.settings["model"]),
        "settings": {key: value for key, value in plan.settings.items() if key not in ("observe", "out")},
        "data_files": dict(plan.data_files),
        "data": _data_facts(report_of(runs)),
        "versions": first.get("versions", {}),
        "hardware": first.get("hardware", {}),
        "seconds": sum(value or 0 for record in done for value in record.get("seconds", {}).values()),
        "repeatable": all(record["train"].get("repeatable", True) for record in done if "train" in record),
    }


def report_of(runs: Sequence[RunOutcome]) -> Mapping[str, Any]:
    """The report on the data, as the first run that trained recorded it."""
    for run in runs:
        if run.done and (report := run.record.get("train", {}).get("data")):
            return report
    return {}


def _data_facts(report: Mapping[str, Any]) -> dict[str, Any]:
    """The counts that an appendix needs."""
    facts = dict(report.get("counts", {}))
    for name in ("dropped", "truncated"):
        if cut := sum(report.get(name, {}).values()):
            facts[f"{name} as too long"] = cut
    if report.get("duplicates"):
        facts["duplicates removed"] = report["duplicates"]
    return facts


def differences(plan: Plan, chosen: Mapping[str, int]) -> list[dict[str, Any]]:
    """Every setting that is not the same in all arms, with who wrote it.

    `why` is "method" where only method patches make the difference and "besides" where anything else does.
    Options that merely come with another part (its `kind` is listed) are left out.

    Args:
        plan: with the resolved settings of every arm.
        chosen: arm's folder → index of the tuned candidate.
    """
    flat = {arm.label: dotted(dict(arm.settings)) for arm in plan.arms}
    writers = {arm.label: dict(arm.origins) for arm in plan.arms}
    for arm in plan.arms:
        tuned = plan.candidates[chosen[arm.folder]] if arm.folder in chosen else {}
        flat[arm.label].update(tuned)
        writers[arm.label].update(dict.fromkeys(tuned, "tuned"))

    left_out = (*NOT_PART_OF_A_RUN, "seed")
    paths = {path for settings in flat.values() for path in settings}
    compared = sorted(path for path in paths if path.split(".")[0] not in left_out)
    rows = [_difference(path, flat, writers) for path in compared]
    return [row for row in rows if row is not None]


def _difference(
    path: str, flat: Mapping[str, Mapping[str, Any]], writers: Mapping[str, Mapping[str, str]]
) -> dict[str, Any] | None:
    holders = {label: settings[path] for label, settings in flat.items() if path in settings}
    same = len({repr(value) for value in holders.values()}) == 1
    if same and len(holders) == len(flat):
        return None
    # `tuner.r` of one arm is no difference of its own where the other arm has a tuner without such an option.
    kind = f"{path.rpartition('.')[0]}.kind"
    if same and path != kind and len({settings.get(kind) for settings in flat.values()}) > 1:
        return None
    names = {writers[label].get(path, "default") for label in holders}
    others = sorted(name for name in names if not name.startswith(("method ", "default")))
    values = {label: settings.get(path) for label, settings in flat.items()}
    return {"path": path, "why": "besides" if others else "method", "values": values, "writers": others}


def warnings(plan: Plan, runs: Sequence[RunOutcome]) -> list[str]:
    """Sentences that a reader needs before the table."""
    done = [run for run in runs if run.done]
    sentences = [*_unequal_data(plan, done), *report_of(done).get("warnings", [])]
    sentences += [f"{run.task.folder}: {line}" for run in done for line in run.record.get("warnings", [])]
    if "seconds" in plan.settings["budget"]:
        sentences.append("The budget is in seconds: another machine, or another load on this one, gives other results.")
    items = {frozenset(item.id for item in run.items["target"]) for run in done}
    if len(items) > 1 and not plan.settings["compare"]["axes"]:
        sentences.append("The runs were not evaluated on the same items; comparisons use the items they share.")
    for key in ("versions", "hardware"):
        if len({repr(sorted(run.record.get(key, {}).items())) for run in done}) > 1:
            environments = "they were not all made in one environment; their speeds mislead"
            sentences.append(f"The runs differ in {key}: {environments}.")
    return sentences


def _unequal_data(plan: Plan, done: Sequence[RunOutcome]) -> Iterator[str]:
    """Warn where methods under one budget, at the same axis values, trained on different amounts of data."""
    trained: dict[str, list[RunOutcome]] = {}
    for run in done:
        trained.setdefault(run.task.arm, []).append(run)
    for axes in {repr(arm.axes): arm.axes for arm in plan.arms}.values():
        arms = [arm for arm in plan.arms if arm.axes == axes and arm.folder in trained]
        for key in ("records", "tokens"):
            used = {}
            for arm in arms:
                used[arm.label] = fmean(run.record["train"][key] for run in trained[arm.folder])
            if used and max(used.values()) > (1 + UNEQUAL_DATA) * min(used.values()):
                listed = ", ".join(f"{label} {amount:,.0f}" for label, amount in used.items())
                yield f"The methods did not train on the same amount of data ({key}: {listed})."
                break  # records that differ make tokens differ: one sentence is enough
