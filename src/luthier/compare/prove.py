"""Running a proof: its comparison, then every claim held against what the runs left in their folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from luthier.compare.job import compare
from luthier.data.sources import load_records
from luthier.errors import RecipeError
from luthier.proofs.claims import UNTRAINED, Claim, Measured, judge
from luthier.proofs.proof import Proof
from luthier.proofs.results import mark, seen
from luthier.run_folder import RunFolder, read_json, read_jsonl, write_json

SETS = ("target", "retain", "validation")
PART = 4  # `first` and `last` are a quarter of the updates each
ARMS = ("of", "against")


def prove(
    proof: Proof,
    folder: RunFolder | Path | None = None,
    console: Console | None = None,
    *,
    overrides: Sequence[str] = (),
    command: Sequence[str] | None = None,
) -> Path:
    """Run a proof's comparison, judge its claims and write proof.json beside the report.

    Args:
        proof: as it was written.
        folder: of before, to go on there.
        console: where progress and tables go.
        overrides: `path=value`; for where it is written, since anything else would be another proof.
        command: a worker of one's own, as for `compare`.

    Returns:
        proof.json.

    Raises:
        RecipeError: a claim names a row or a measure that the comparison does not have.
        RunError: no run succeeded.
        Stopped: the user stopped it; the hint says how to go on.
    """
    console = console or Console()
    recipe = {"name": f"prove-{proof.method}", **proof.recipe}
    report = compare(recipe, folder=folder, console=console, overrides=overrides, command=command)
    found = document(proof, report.parent)
    path = report.parent / "proof.json"
    write_json(path, found)
    console.print(table(found))
    return path


def document(proof: Proof, folder: Path) -> dict[str, Any]:
    """proof.json of a finished comparison: verdicts, the numbers of every seed, and how they came about."""
    results, arms = read_json(folder / "results.json"), _arms(folder)
    claims = {name: _judged(claim, arms) for name, claim in proof.claims.items()}
    return {
        "method": proof.method,
        "mark": mark([claim["verdict"]["outcome"] for claim in claims.values()]),
        "hash": proof.hash,
        "claims": claims,
        "seeds": results["seeds"],
        "budget": results["budget"],
        "costs": {row["label"]: row["cost"] for row in results["rows"] if row.get("cost")},
        "failures": [failure["folder"] for failure in results["failures"]],
        "versions": results["setup"]["versions"],
        "hardware": results["setup"]["hardware"],
        "seconds": results["setup"]["seconds"],
    }


def _arms(folder: Path) -> dict[str, dict[int, Path]]:
    """The folders of all runs that are done, by row and seed."""
    plan = read_json(folder / "plan.json")
    places = {
        cell["label"]: {seed: f"{cell['folder']}/seed-{seed}" for seed in plan["seeds"]} for cell in plan["cells"]
    }
    places[UNTRAINED] = {0: "shared/base"}
    return {
        label: {seed: folder / place for seed, place in seeds.items() if _done(folder / place)}
        for label, seeds in places.items()
    }


def _done(folder: Path) -> bool:
    return (folder / "run.json").is_file() and read_json(folder / "run.json")["status"] == "done"


def _judged(claim: Claim, arms: Mapping[str, Mapping[int, Path]]) -> dict[str, Any]:
    measured = {}
    for role in ARMS:
        if (name := getattr(claim, role)) is None:
            continue
        if name not in arms:
            raise RecipeError(f"There is no row `{name}` to claim something of.", f"There are {', '.join(arms)}.")
        measured[role] = measure(claim.measure, arms[name])
    verdict = judge(claim, measured["of"], measured.get("against"))
    by_seed = {getattr(claim, role): dict(found.by_seed) for role, found in measured.items()}
    return {**claim.model_dump(exclude_none=True), "verdict": verdict.to_json(), "by_seed": by_seed}


def measure(name: str, runs: Mapping[int, Path]) -> Measured:
    """A measure of every run of an arm; docs/proofs.md lists what there is.

    Raises:
        RecipeError: the runs have no such thing; the hint says what they have.
    """
    if name in SETS:
        items = {seed: _scores(run, name) for seed, run in runs.items()}
        return Measured({seed: fmean(scores.values()) for seed, scores in items.items()}, items)
    head, _, rest = name.partition(".")
    read: Callable[[Path, str], float] = {"metrics": _of_metrics, "kept": _of_kept, "answers": _of_answers}.get(
        head, lambda run, _: _of_record(run, name)
    )
    return Measured({seed: read(run, rest) for seed, run in runs.items()})


def _scores(run: Path, name: str) -> dict[str, float]:
    lines = read_jsonl(run / "evaluation.jsonl")
    scores = {line["id"]: line["score"] for line in lines if line["set"] == name}
    if not scores:
        raise _missing(name, sorted({line["set"] for line in lines}))
    return scores


def _of_record(run: Path, name: str) -> float:
    """A number of run.json by its path, such as `train.target_tokens`."""
    found: Any = read_json(run / "run.json")
    for key in name.split("."):
        known = sorted(found) if isinstance(found, dict) else []
        found = found.get(key) if isinstance(found, dict) else None
        if found is None:
            raise _missing(name, known)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise RecipeError(f"`{name}` is no number in run.json, but {str(found)[:60]!r}.")
    return found


def _of_metrics(run: Path, name: str) -> float:
    """A column of metrics.jsonl over the `first` or `last` quarter of the updates, all (`mean`), or last - first."""
    column, _, part = name.rpartition(".")
    lines = [line for line in read_jsonl(run / "metrics.jsonl") if "update" in line and "event" not in line]
    values = [line[column] for line in lines if line.get(column) is not None]
    if not values:
        raise _missing(f"metrics.{name}", sorted({key for line in lines for key in line}))
    quarter = max(1, len(values) // PART)
    first, last = fmean(values[:quarter]), fmean(values[-quarter:])
    parts = {"first": first, "last": last, "mean": fmean(values), "rise": last - first}
    if part not in parts:
        raise RecipeError(f"`metrics.{name}` must end in one of {', '.join(parts)}.", "Write metrics.reward.last.")
    return parts[part]


def _of_answers(run: Path, name: str) -> float:
    """`answers.length`: characters of the answers to the target items, on average."""
    if name != "length":
        raise _missing(f"answers.{name}", ["answers.length"])
    return fmean(len(line["prediction"]) for line in read_jsonl(run / "evaluation.jsonl") if line["set"] == "target")


def _of_kept(run: Path, column: str) -> float:
    """The share of the records that a selector kept whose column, true or false, is true."""
    kept = [
        name for line in read_jsonl(run / "metrics.jsonl") if line.get("event") == "kept" for name in line["records"]
    ]
    if not kept:
        raise RecipeError(f"`kept.{column}`: this run has no selector.", "Claim it of a method with `train.select`.")
    lock = read_json(run / "task.json")["recipe"]
    records = {one.id: one for one in load_records(lock["recipe"]["data"]["train"], Path(lock["base"]))}
    if not any(column in record.fields for record in records.values()):
        raise _missing(f"kept.{column}", sorted({key for record in records.values() for key in record.fields}))
    return fmean(bool(records[name].fields.get(column)) for name in kept)


def _missing(name: str, known: Sequence[str]) -> RecipeError:
    return RecipeError(f"The runs have no `{name}`.", f"There is {', '.join(known) or 'nothing'}.")


def table(found: Mapping[str, Any]) -> Table:
    """The claims of a proof.json with what was seen, for a terminal."""
    shown = Table(title=f"proof of {found['method']}: {found['mark']}", title_justify="left")
    for head in ("claim", "what was claimed", "seen [95% interval]", "verdict"):
        shown.add_column(head)
    for name, claim in found["claims"].items():
        shown.add_row(name, claim["text"], seen(claim), claim["verdict"]["outcome"])
    return shown
