"""One run of a recipe from beginning to end: load, carry out its steps, save, evaluate, record."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier import parts
from luthier.console import Terminal
from luthier.errors import LuthierError, RunError
from luthier.modalities.open import open_workspace
from luthier.recipe import Recipe, Stage, flat, stages_of
from luthier.recipe.fingerprint import fingerprint
from luthier.recipe.steps import NEWEST
from luthier.rewards.base import FAILED, failure_in_words
from luthier.run_folder import read_json, read_jsonl, write_json
from luthier.runs.journal import Journal
from luthier.runs.run import Run
from luthier.runs.stop import Ended, Stop, stop_signals
from luthier.steps.evaluate import evaluate_sets
from luthier.steps.model import read_back_warnings, save_and_read
from luthier.steps.pipeline import run_pipeline
from luthier.steps.verify import verify
from luthier.steps.work import Work
from luthier.threads import spinning_warning


def run_recipe(recipe: Recipe, folder: Path, observers: Sequence[str]) -> dict[str, Any]:
    """Train and evaluate a recipe in `folder`, from the newest checkpoint there.

    Args:
        observers: "progress" draws a progress bar.

    Returns:
        The content of run.json; that of a finished run without training again.

    Raises:
        LuthierError: the run failed. run.json holds the message too, unless it holds another recipe's finished run.
    """
    console = Terminal() if "progress" in observers else None
    run = Run(recipe, folder, console=console, cache=folder / "shared")
    return finished(recipe, folder) or carry_out(run)


def finished(recipe: Recipe, folder: Path) -> dict[str, Any] | None:
    """The run.json of a run that is done in this folder; None if there is no such run.

    Raises:
        RunError: the finished run is another recipe's, whose results must not be replaced.
    """
    if not (folder / "run.json").is_file():
        return None
    record = read_json(folder / "run.json")
    if record["status"] != "done":
        return None
    if record.get("fingerprint") != fingerprint(recipe):
        raise RunError(f"{folder} holds the finished run of another recipe.", "Start a new run.")
    return record


def carry_out(run: Run) -> dict[str, Any]:
    """Train, save, evaluate, and write run.json; returns its content.

    Raises:
        LuthierError: the run failed; run.json holds the message.
    """
    # Every rank writes a journal; rank 0's is the one that users read.
    folder = run.folder if run.world.rank == 0 else run.folder / f"rank-{run.world.rank}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with Journal(folder, run.console) as journal, stop_signals() as stop:
            record = _carry_out(run, folder, journal, stop)
    except Ended:
        record = run.record("stopped")
    except LuthierError as error:
        write_json(folder / "run.json", run.record("failed", str(error)))
        raise
    except Exception as error:
        if parts.place_in_part(error) is None:  # Luthier's own bug: its traceback is wanted
            raise
        failure = RunError(
            f"A part in a file of your own raised {parts.describe_error(error)}.",
            "`luthier check ./FILE.py` tries it; `luthier --debug run ...` shows the traceback.",
        )
        write_json(folder / "run.json", run.record("failed", str(failure)))
        raise failure from error
    write_json(folder / "run.json", record)
    if record["status"] == "done":
        # Checkpoints and cached hidden states are large, and only a run that goes on needs them.
        for leftover in (folder / "checkpoints", folder / "shared" / "states", *folder.glob("steps/**/checkpoints")):
            shutil.rmtree(leftover, ignore_errors=True)
    return record


def _reach(stages: Sequence[Stage], folder: Path) -> None:
    """Raise RunError if a step needs a model behind a server that cannot be reached."""
    for stage in flat(stages):
        stage.verb.reach(stage, folder)


def _carry_out(run: Run, folder: Path, journal: Journal, stop: Stop) -> dict[str, Any]:
    run.phase = journal.phase
    stages = stages_of(run.recipe)
    # A mistake in the last step, or a server that is down, must not cost the training before it.
    verify(stages)
    _reach(stages, folder)
    with stop.at_once(), run.timed("load"):
        journal.phase("load")
        workspace = open_workspace(run.recipe, run.cache)
        workspace.refuse_unscorable(run.sets)
        journal.counts = workspace.COUNTS
        journal.progress(1, 1)
    work = Work(run, workspace, journal, stop)
    status = run_pipeline(work, stages)
    facts = work.summary()
    if status == "stopped" or run.world.rank > 0:  # all ranks have the same weights: rank 0 alone saves and evaluates
        return run.record(status, **facts)
    model = work.models[NEWEST]
    with run.timed("save"):
        progress = journal.phase("save", 1)
        saved = save_and_read(model, folder / "model", workspace)
        progress(1, 1)
    with run.timed("evaluate"), stop.at_once():
        evaluation = evaluate_sets(workspace, model.module, run.sets, folder, journal)
    return run.record(
        status,
        **facts,
        saved=saved,
        evaluation=evaluation,
        warnings=[*facts["train"].pop("warnings", []), *read_back_warnings(saved), *_warnings(facts, folder)],
    )


def _warnings(facts: dict[str, Any], folder: Path) -> list[str]:
    """What the user should know about a run that has ended."""
    warnings = [*_unmoved(facts["train"], folder), *_reward_failures(folder)]
    for training in (facts["train"], *facts.get("steps", {}).values()):
        for name in training.get("damaged_checkpoints", ()):
            warnings.append(f"The checkpoint {name} was damaged, so the run went on from the one before it.")
    if spinning := spinning_warning():
        warnings.append(spinning)
    return warnings


def _unmoved(train: dict[str, Any], folder: Path) -> list[str]:
    """A warning if half of the updates or more had nothing to learn from, with the cause of most of them."""
    skipped, updates = train.get("skipped_updates", 0), train["updates"]
    if 2 * skipped < updates or not skipped:
        return []
    causes: Counter[str] = Counter()
    for line in read_jsonl(folder / "metrics.jsonl"):
        if not line.get("skipped"):
            continue
        if not line.get("informative_groups"):
            cause = (
                "all answers to each of their prompts got the same reward. Sample more answers, or give a reward that"
                " tells them apart."
            )
        elif line.get("truncated", 0.0) == 1.0:
            cause = (
                "all answers ran into `generate.max_new_tokens`, and `rl.train_cut_off: false` leaves such answers out."
                " Raise the limit."
            )
        else:
            cause = "no token of an answer had an advantage. Look at `rl.advantages` and at the failed answers."
        causes[cause] += 1
    cause, _ = causes.most_common(1)[0]
    return [f"{skipped} of {updates} updates did not move the model: {cause}"]


def _reward_failures(folder: Path) -> list[str]:
    """A warning for each reward that failed on answers, which were judged without it."""
    failures: dict[str, list[dict[str, Any]]] = {}
    for line in read_jsonl(folder / "metrics.jsonl"):
        if line.get("event") == FAILED:
            failures.setdefault(line["reward"], []).append(line)
    warnings = []
    for name, lines in failures.items():
        warnings.append(
            f"The reward `{name}` failed {len(lines)} times, and these answers were judged without it; the first:"
            f" {failure_in_words(lines[0])}. All are in metrics.jsonl."
        )
    return warnings
