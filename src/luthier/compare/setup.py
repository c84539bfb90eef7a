"""What was equal, what was not, and what must be said about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from luthier.compare.plan import Plan
from luthier.compare.runs import FinishedRun
from luthier.recipe.fingerprint import NOT_PART_OF_A_RUN
from luthier.recipe.merge import dotted

SAME = 0.005  # share by which the data used may differ before it is said


def setup(plan: Plan, runs: Sequence[FinishedRun]) -> dict[str, Any]:
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


def report_of(runs: Sequence[FinishedRun]) -> Mapping[str, Any]:
    """What the doctor said about the data, as the first run that trained recorded it."""
    reports = (run.record["train"].get("data") for run in runs if run.done and "train" in run.record)
    return next((report for report in reports if report), {})


def _data_facts(report: Mapping[str, Any]) -> dict[str, Any]:
    """The counts that an appendix needs."""
    facts = dict(report.get("counts", {}))
    for name in ("dropped", "truncated"):
        if cut := sum(report.get(name, {}).values()):
            facts[f"{name} as too long"] = cut
    facts |= {f"{name.replace('_', ' ')} removed": report[name] for name in ("duplicates",) if report.get(name)}
    return facts


def differences(plan: Plan, chosen: Mapping[str, int]) -> list[dict[str, Any]]:
    """Every setting that is not the same in all columns, with who wrote it.

    `why` is "method" where only patches make the difference and "besides" where anything else does.
    Options that merely come with another part (its `kind` is listed) are left out.

    Args:
        plan: with the resolved settings of every column.
        chosen: cell's folder → index of the tuned candidate.
    """
    flat = {cell.label: dotted(dict(cell.settings)) for cell in plan.cells}
    writers = {cell.label: dict(cell.origins) for cell in plan.cells}
    for cell in plan.cells:
        tuned = plan.candidates[chosen[cell.folder]] if cell.folder in chosen else {}
        flat[cell.label].update(tuned)
        writers[cell.label].update(dict.fromkeys(tuned, "tuned"))
    outside = (*NOT_PART_OF_A_RUN, "seed")
    paths = sorted({path for values in flat.values() for path in values if path.split(".")[0] not in outside})
    return [found for path in paths if (found := _difference(path, flat, writers)) is not None]


def _difference(
    path: str, flat: Mapping[str, Mapping[str, Any]], writers: Mapping[str, Mapping[str, str]]
) -> dict[str, Any] | None:
    holders = {label: values[path] for label, values in flat.items() if path in values}
    same = len({repr(value) for value in holders.values()}) == 1
    if same and len(holders) == len(flat):
        return None
    kind = f"{path.rpartition('.')[0]}.kind"
    if same and len({values.get(kind) for values in flat.values()}) > 1 and path != kind:
        return None
    names = {writers[label].get(path, "default") for label in holders}
    others = sorted(name for name in names if not name.startswith(("method ", "default")))
    values = {label: settings.get(path) for label, settings in flat.items()}
    return {"path": path, "why": "besides" if others else "method", "values": values, "writers": others}


def warnings(plan: Plan, runs: Sequence[FinishedRun]) -> list[str]:
    """What a reader must know before reading the table."""
    done = [run for run in runs if run.done]
    found = [*_unequal_data(plan, done), *report_of(done).get("warnings", [])]
    found += [f"{run.task.folder}: {line}" for run in done for line in run.record.get("warnings", [])]
    if "seconds" in plan.settings["budget"]:
        found.append("The budget is in seconds: another machine, or another load on this one, gives other results.")
    items = {frozenset(item.id for item in run.items["target"]) for run in done}
    if len(items) > 1 and not plan.settings["compare"]["axes"]:
        found.append("The runs were not evaluated on the same items; comparisons use the items they share.")
    for key in ("versions", "hardware"):
        if len({repr(sorted(run.record.get(key, {}).items())) for run in done}) > 1:
            found.append(f"The runs differ in {key}: they were not all made in one environment; their speeds mislead.")
    return found


def _unequal_data(plan: Plan, done: Sequence[FinishedRun]) -> Iterator[str]:
    """Methods under one budget should have seen the same data."""
    for axes in {repr(cell.axes): cell.axes for cell in plan.cells}.values():
        cells = {cell.folder: cell.label for cell in plan.cells if cell.axes == axes}
        for key in ("records", "tokens"):
            used = {
                label: fmean(run.record["train"][key] for run in done if run.task.cell == folder)
                for folder, label in cells.items()
                if any(run.task.cell == folder for run in done)
            }
            if used and max(used.values()) > (1 + SAME) * min(used.values()):
                listed = ", ".join(f"{label} {value:,.0f}" for label, value in used.items())
                yield f"The methods did not train on the same amount of data ({key}: {listed})."
                break
