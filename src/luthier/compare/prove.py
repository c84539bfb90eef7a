"""Run a proof: its comparison first, then each claim is judged by the numbers in the folders of the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from luthier.compare.job import compare
from luthier.console import Terminal
from luthier.data.sources import load_records
from luthier.errors import RecipeError
from luthier.proofs.claims import UNTRAINED, Claim, Measured, judge
from luthier.proofs.proof import Proof
from luthier.proofs.results import mark, seen
from luthier.run_folder import RunFolder, read_json, read_jsonl, write_json

SETS = ("target", "retain", "validation")
PART = 4  # `first` and `last` are a quarter of the updates each
ROLES = ("of", "against")


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
        folder: of an earlier try, to go on there.
        console: where progress and tables go.
        overrides: `path=value`; only for where files are written: any other key would make another proof.
        command: starts a worker in place of Luthier's own, as for `compare`.

    Returns:
        proof.json.

    Raises:
        RecipeError: a claim names a row or a measure that the comparison does not have.
        RunError: no run succeeded.
        Stopped: the user stopped it; the hint says how to go on.
    """
    console = console or Terminal()
    recipe = {"name": f"prove-{proof.method}", **proof.recipe}
    report = compare(recipe, folder=folder, console=console, overrides=overrides, command=command)
    proof_json = document(proof, report.parent)
    path = report.parent / "proof.json"
    write_json(path, proof_json)
    console.print(table(proof_json))
    return path


def document(proof: Proof, folder: Path) -> dict[str, Any]:
    """The content of proof.json for a finished comparison: verdicts, the numbers of every seed, cost, set-up."""
    results, arms = read_json(folder / "results.json"), _finished_runs(folder)
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


def _finished_runs(folder: Path) -> dict[str, dict[int, Path]]:
    """The folders of all runs that are done, by row and seed."""
    plan = read_json(folder / "plan.json")
    runs: dict[str, dict[int, Path]] = {}
    for row in plan["cells"]:
        paths = {seed: folder / row["folder"] / f"seed-{seed}" for seed in plan["seeds"]}
        runs[row["label"]] = {seed: path for seed, path in paths.items() if _done(path)}
    base = folder / "shared" / "base"
    runs[UNTRAINED] = {0: base} if _done(base) else {}
    return runs


def _done(folder: Path) -> bool:
    return (folder / "run.json").is_file() and read_json(folder / "run.json")["status"] == "done"


def _judged(claim: Claim, arms: Mapping[str, Mapping[int, Path]]) -> dict[str, Any]:
    measured = {}
    for role in ROLES:
        if (name := getattr(claim, role)) is None:
            continue
        if name not in arms:
            raise RecipeError(f"There is no row `{name}` to claim something of.", f"There are {', '.join(arms)}.")
        measured[role] = measure(claim.measure, arms[name])
    verdict = judge(claim, measured["of"], measured.get("against"))
    by_seed = {getattr(claim, role): dict(measure_of.by_seed) for role, measure_of in measured.items()}
    return {**claim.model_dump(exclude_none=True), "verdict": verdict.to_json(), "by_seed": by_seed}


def measure(name: str, runs: Mapping[int, Path]) -> Measured:
    """A measure of every run of an arm; docs/proofs.md lists the measures.

    Args:
        name: a set, or `metrics.`, `kept.` or `answers.` and a column, or the path of a number in run.json.
        runs: folder of each run by its seed.

    Raises:
        RecipeError: the runs have no such measure; the hint lists those they have.
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
    number: Any = read_json(run / "run.json")
    for key in name.split("."):
        known = sorted(number) if isinstance(number, dict) else []
        number = number.get(key) if isinstance(number, dict) else None
        if number is None:
            raise _missing(name, known)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise RecipeError(f"`{name}` is no number in run.json, but {str(number)[:60]!r}.")
    return number


def _of_metrics(run: Path, name: str) -> float:
    """A column of metrics.jsonl over the `first` or `last` quarter of the updates, all (`mean`), or last - first."""
    column, _, part = name.rpartition(".")
    lines = [line for line in read_jsonl(run / "metrics.jsonl") if "update" in line and "event" not in line]
    curve = [line[column] for line in lines if line.get(column) is not None]
    if not curve:
        raise _missing(f"metrics.{name}", sorted({key for line in lines for key in line}))
    # A quarter, since single updates are too noisy to judge a claim by.
    quarter = max(1, len(curve) // PART)
    first, last = fmean(curve[:quarter]), fmean(curve[-quarter:])
    parts = {"first": first, "last": last, "mean": fmean(curve), "rise": last - first}
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
    kept: list[str] = []
    for line in read_jsonl(run / "metrics.jsonl"):
        if line.get("event") == "kept":
            kept += line["records"]
    if not kept:
        raise RecipeError(f"`kept.{column}`: this run has no selector.", "Claim it of a method with `train.select`.")
    # metrics.jsonl names the kept records by id; their columns are in the data alone.
    lock = read_json(run / "task.json")["recipe"]
    records = {record.id: record for record in load_records(lock["recipe"]["data"]["train"], Path(lock["base"]))}
    if not any(column in record.fields for record in records.values()):
        raise _missing(f"kept.{column}", sorted({key for record in records.values() for key in record.fields}))
    return fmean(bool(records[name].fields.get(column)) for name in kept)


def _missing(name: str, known: Sequence[str]) -> RecipeError:
    return RecipeError(f"The runs have no `{name}`.", f"There is {', '.join(known) or 'nothing'}.")


def table(proof_json: Mapping[str, Any]) -> Table:
    """The claims of a proof.json with the measured numbers, for a terminal."""
    rows = Table(title=f"proof of {proof_json['method']}: {proof_json['mark']}", title_justify="left")
    for head in ("claim", "what was claimed", "measured [95% interval]", "verdict"):
        rows.add_column(head)
    for name, claim in proof_json["claims"].items():
        rows.add_row(name, claim["text"], seen(claim), claim["verdict"]["outcome"])
    return rows
