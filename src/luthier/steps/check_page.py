"""The output of `luthier check`: the findings of a check, each printed as soon as it is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from luthier.data.doctor import print_preview, print_report, print_warning
from luthier.data.report import DataReport
from luthier.engine.trains import Trains
from luthier.evals.worked import ExplainedMetric
from luthier.recipe import Recipe
from luthier.steps.check import Finding, Methods, Network, Server, Steps, Timing, examine_recipe
from luthier.steps.check_data import GuessedColumns
from luthier.steps.check_metric import WAYS
from luthier.steps.check_model import ModelTrial
from luthier.steps.trial import TriedUpdate


def check_recipe(
    recipe: Recipe, probe: bool, console: Console, tell: Callable[[Finding], None] = lambda finding: None
) -> None:
    """Examine a recipe and print the findings; with `probe`, train a few updates to estimate the time.

    Args:
        tell: is called with each finding after it has been printed.

    Raises:
        LuthierError: the recipe cannot run as it is; all findings have been printed.
    """

    def printed(finding: Finding) -> None:
        print_finding(finding, console)
        tell(finding)

    with console.status("probe" if probe else "check"):
        findings = examine_recipe(recipe, probe, printed)
    if not any(isinstance(finding, Network | Steps | Timing) for finding in findings):
        console.print("[bold]time[/]    run with --probe: a few updates, then an estimate")


def print_finding(finding: Finding, console: Console) -> None:
    """Print a finding as a table, or as lines that begin with its subject."""
    if isinstance(finding, DataReport):
        print_report(finding, console)
    elif isinstance(finding, GuessedColumns):
        _print_guess(finding, console)
    elif isinstance(finding, ExplainedMetric):
        _print_metric(finding, console)
    elif isinstance(finding, TriedUpdate):
        _print_trial(finding, console)
    elif isinstance(finding, Network):
        _print_network(finding, console)
    elif isinstance(finding, ModelTrial):
        for line in finding.lines:
            console.print(f"[bold]model[/]   {escape(line)}", highlight=False)
    elif isinstance(finding, Steps):
        _print_steps(finding, console)
    elif isinstance(finding, Server):
        fault = None if finding.fault is None else f"[yellow]not yet[/]: {escape(finding.fault)}"
        console.print(f"[bold]server[/]  {finding.step}: {fault or f'{finding.url} answers'}", highlight=False)
    elif isinstance(finding, Methods):
        for trains in finding.trains:
            _print_trains(trains, console)
        _print_methods(finding, console)
    else:
        _print_timing(finding, console)


def _print_guess(finding: GuessedColumns, console: Console) -> None:
    guess, source = finding.guess, ".".join(finding.path)
    if not guess.columns:
        console.print(f"\n[bold]columns[/] of {source}: nothing is offered, {escape(guess.reason)}", highlight=False)
        for described in guess.described:
            console.print(f"  {described}", markup=False, highlight=False)
        return
    console.print(f"\n[bold]columns[/] of {source} are probably these ({escape(guess.reason)}):", highlight=False)
    console.print(f"  columns: {guess.text}", markup=False, highlight=False)
    if guess.unread:
        console.print(
            f"  not read: {', '.join(name or repr(name) for name in guess.unread)}", markup=False, highlight=False
        )
    if finding.fault:
        console.print(f"  A record read so: {finding.fault}", markup=False, highlight=False)
    for preview in finding.previews:
        print_preview(preview, console)
    if not finding.offered:
        return
    console.print(
        f"  If that is right, `luthier check RECIPE --yes` writes it into the recipe, or you do, below {source}.",
        markup=False,
        highlight=False,
    )


def _print_metric(metric: ExplainedMetric, console: Console) -> None:
    """The metric and its reason; of each example the reference, an answer that is right, and one that is wrong."""
    way = f"; {WAYS[metric.name]}" if metric.name in WAYS else ""
    console.print(f"\n[bold]metric[/]  {escape(metric.name)} ({escape(metric.reason)}{way})", highlight=False)
    for example in metric.examples:
        line = f"  reference {_short(example.reference)}"
        for word, answer in (("right", example.right), ("wrong", example.wrong)):
            if answer is not None:
                line += f" · {word} ({answer[1]:.2g}): {_short(answer[0])}"
        console.print(line, markup=False, highlight=False)
    if mistaken := next((example for example in metric.examples if example.mistaken is not None), None):
        texts = f"{_short(str(mistaken.mistaken))} counts as right where the reference is {_short(mistaken.reference)}"
        print_warning(f"{texts}: set `evaluate.metric` if they are not the same.", console)


def _print_trial(trial: TriedUpdate, console: Console) -> None:
    if trial.left_out:
        text = f"{trial.parts}: the parts fit each other and the data; no update was tried ({trial.left_out})"
    else:
        loss = "" if trial.loss is None else f", loss {trial.loss:.3f}"
        text = f"{trial.parts}: one update on the {trial.records} shortest records{loss}"
    console.print(f"\n[bold]trial[/]   {escape(text)}", highlight=False)


def _short(text: str) -> str:
    """A text in quotes on one line; of a long one its end, where most answers stand."""
    text = " ".join(text.split())
    return repr(text if len(text) <= 48 else f"...{text[-45:]}")


def _print_network(network: Network, console: Console) -> None:
    size = f"{network.parameters:,} parameters (of the {network.kind})"
    console.print(f"[bold]model[/]   {network.name}, {size}", highlight=False)
    counts = ", ".join(f"{name} {count}" for name, count in network.data.counts.items())
    console.print(f"[bold]data[/]    {counts}: {escape(network.arrays)}", highlight=False)
    for name, leak in network.data.leakage.items():
        if leak["exact"]:
            console.print(f"        {leak['exact']} records of {name} are in the training data too", markup=False)


def _print_steps(steps: Steps, console: Console) -> None:
    table = Table("step", "do", "from", "data", "share", box=None, pad_edge=False)
    for line in steps.lines:
        share = "" if line.share is None else f"{line.share:.0%}"
        table.add_row("  " * line.depth + line.name, line.do, line.model, line.data, share)
    console.print(table, highlight=False)
    peak = f"{steps.peak_bytes / 1e9:.1f} GB at the peak of `{steps.largest}`"
    console.print(f"[bold]memory[/]  {peak} (estimated; {_available()})")


def _print_trains(trains: Trains, console: Console) -> None:
    """Print what a tuner can change, kind by kind, and what it leaves out."""
    console.print(f"[bold]trains[/]  kinds of weights, and how much of each `{trains.tuner}` reaches", highlight=False)
    table = Table("  kind", "of the model", "reached", "numbers trained", box=None, pad_edge=False)
    for kind in trains.kinds:
        table.add_row(f"  {kind.kind}", f"{kind.share:.1%}", f"{kind.reached:.0%}", f"{kind.trained:,}")
    console.print(table, highlight=False)
    for line in trains.warnings():
        console.print(f"   {line}", style="yellow", markup=False, emoji=False, highlight=False)


def _print_methods(methods: Methods, console: Console) -> None:
    """Print the fitting methods by family, with their memory if it is estimated, and why the others do not fit."""
    estimated = any(fit.peak_bytes is not None for fit in methods.fits)
    note = f" that fit  [dim](estimated peak; {_available()})[/]" if estimated else " that fit"
    console.print(f"[bold]methods[/]{note}", highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for family, fits in methods.by_family().items():
        names = [fit.name if fit.peak_bytes is None else f"{fit.name} {fit.peak_bytes / 1e9:.1f} GB" for fit in fits]
        table.add_row(f"  {family}", escape(" · ".join(names)))
    console.print(table, highlight=False)
    if estimated:
        for reason, names in methods.refused.items():
            line = f"   not  {', '.join(names)}: {reason}"
            console.print(line, style="dim", markup=False, emoji=False, highlight=False)


def _print_timing(timing: Timing, console: Console) -> None:
    console.print(
        f"[bold]time[/]    about {timing.seconds / 60:.1f} min of training at {timing.rate:,.0f} {timing.counts}/s, "
        "without evaluation"
    )
    estimated = "" if timing.estimated_bytes is None else f", {timing.estimated_bytes / 1e9:.2f} GB estimated"
    console.print(f"[bold]memory[/]  {timing.peak_bytes / 1e9:.2f} GB measured{estimated}")


def _available() -> str:
    """The free memory of the GPU, or of the machine if it has none."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"GPU: {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return "memory of this machine unknown"
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return f"this machine: {free / 1e9:.1f} GB free"
