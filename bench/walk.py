"""How far a reader walks through the code: functions, files and changes of file that one training enters.

    python bench/walk.py                                  # this tree; under a minute on one core
    python bench/walk.py --json                           # the numbers alone
    git archive 8607436 | tar x -C /tmp/before && PYTHONPATH=/tmp/before/src python bench/walk.py

The run is sft with LoRA on `nano`: 12 records, 4 updates, evaluation included, all in this process. `sys.setprofile` reports every
call of a Python function in a file of the package; lambdas, comprehensions and module bodies are left out. A phase counts what is
entered while its first function runs. The *main path* is a list of functions that one record passes on its way from the file
to the step of the optimiser; the script checks that each is entered after the one before, and counts where the file changes. Both lists
stand below: the one of commit 8607436 is that of its review, the other names for each of its stations the function that does this now.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

RECORDS, HELD_OUT, UPDATES = 12, 4, 4
NOW = """
modalities/language/workspace.py: LanguageWorkspace.open
data/prepare.py: prepare prepare_with_report _divide
data/sources.py: load_records
data/split.py: split_records
data/prepare.py: _render
data/render.py: Renderer.explain
data/prepare.py: _fit
steps/train.py: training
modalities/language/workspace.py: LanguageWorkspace.rows training_rows
modalities/language/columns.py: with_references with_fields
modalities/language/workspace.py: LanguageWorkspace.source
modalities/base.py: Workspace.source
engine/source.py: Records.__init__
engine/trainer.py: Trainer._one_update
engine/source.py: Records.draw
engine/budget.py: Budget.draw
data/batches.py: Ordered.at
engine/selection.py: Selection.keep
engine/trainer.py: Trainer._update
engine/micro_batches.py: MicroBatches.within_memory
engine/trainer.py: Trainer._try_update _split_by_gradient
engine/micro_batches.py: MicroBatches.batches
data/batches.py: micro_batches collate
engine/update.py: run_update count
engine/couple.py: couple
engine/update.py: _backward_all backward
objectives/base.py: TokenObjective.terms
models/policy.py: TokenPolicy.hidden
objectives/views.py: token_pass
models/kernels/head.py: Head.sum _ChunkedSum.forward _differentiated _through_linear
objectives/base.py: TokenObjective.weighted
objectives/supervised/sft.py: SFT.token_loss
objectives/views.py: TokenView.logprob
models/kernels/head.py: target_logprob
objectives/base.py: total_of
engine/master_weights.py: MasterWeights.step
"""
BEFORE = """
steps/language.py: LanguageGround.stand
data/prepare.py: prepare run _divide
data/sources.py: load_records
data/split.py: split_records
data/prepare.py: _render
data/render.py: Renderer.explain
data/prepare.py: _fit
steps/train.py: training
steps/language.py: LanguageGround.rows training_rows
steps/columns.py: with_references with_fields
steps/language.py: LanguageGround.source
steps/ground.py: Ground.source
engine/source.py: Records.__init__
engine/trainer.py: Trainer._one
engine/source.py: Records.draw
engine/budget.py: Budget.draw
data/batches.py: Ordered.at
engine/trainer.py: Trainer._select Trainer._update Trainer._within_memory Trainer._try_update Trainer._moving Trainer._batches
data/batches.py: micro_batches collate
engine/update.py: run_update count
engine/couple.py: couple
engine/update.py: _backward_all backward
objectives/base.py: TokenObjective.terms
models/policy.py: TokenPolicy.hidden
objectives/base.py: token_pass
models/head.py: Head.sum _ChunkedSum.forward _differentiated _through_linear
objectives/base.py: TokenObjective.weighted
objectives/supervised/sft.py: SFT.token_loss
objectives/_view.py: TokenView.logprob
models/head.py: target_logprob
objectives/base.py: total_of
engine/precision.py: Masters.step
"""
PHASES = {
    "read the recipe": ("load_recipe",),
    "open the workspace": ("open_workspace", "stand"),
    "assemble the training": ("training",),
    "one update": ("Trainer._one_update", "Trainer._one"),
    "evaluate": ("evaluate_sets",),
}
Station = tuple[str, str]


@dataclass
class Walk:
    """Every call of a function of the package, in order, and what is entered within each phase."""

    package: Path
    calls: list[Station] = field(default_factory=list)
    phases: dict[str, dict[Station, None]] = field(default_factory=lambda: {name: {} for name in PHASES})
    names: dict[CodeType, Station | None] = field(default_factory=dict)
    stack: list[tuple[FrameType, str]] = field(default_factory=list)

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        if event == "return" and self.stack and self.stack[-1][0] is frame:
            self.stack.pop()
        if event != "call" or (station := self.station(frame.f_code)) is None:
            return
        self.calls.append(station)
        for phase, functions in PHASES.items():
            if station[1] in functions:
                self.stack.append((frame, phase))
        for _, phase in self.stack:
            self.phases[phase][station] = None

    def station(self, code: CodeType) -> Station | None:
        """File within the package and name of a function; None for all other code."""
        if code not in self.names:
            path = Path(code.co_filename)
            name = code.co_qualname.replace("<locals>.", "")
            ours = path.is_relative_to(self.package) and "<" not in name
            self.names[code] = (str(path.relative_to(self.package)), name) if ours else None
        return self.names[code]


def stations_of(text: str) -> list[Station]:
    """The stations of a path: one file a line, with the functions that are entered there one after the other."""
    lines = [line.partition(":") for line in text.strip().splitlines()]
    return [(file, function) for file, _, functions in lines for function in functions.split()]


def check_order(path: Sequence[Station], calls: Sequence[Station]) -> None:
    """Raise ValueError if a station is not entered after the one before it."""
    position = 0
    for station in path:
        try:
            position = calls.index(station, position) + 1
        except ValueError:
            raise ValueError(f"{station[0]}: {station[1]} is not entered after the station before it") from None


def size(stations: Sequence[Station]) -> dict[str, int]:
    """Functions, their files, and how often the next function of the sequence lies in another file."""
    files = [file for file, _ in stations]
    return {
        "functions": len(stations),
        "files": len(set(files)),
        "packages": len({file.split("/")[0] for file in files}),
        "changes_of_file": sum(file != following for file, following in pairwise(files)),
    }


def walk(folder: Path) -> Walk:
    """Train and evaluate in this process while every call is noted."""
    import luthier
    from luthier.recipe import load_recipe
    from luthier.steps.run import run_recipe

    pairs = [{"prompt": f"Say {number} twice.", "completion": f"{number} {number}"} for number in range(100, 116)]
    for name, chosen in (("train", pairs[:RECORDS]), ("test", pairs[-HELD_OUT:])):
        lines = [json.dumps(pair) for pair in chosen]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = {
        "model": "nano",
        "data": {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl"), "validation": None},
        "train": {"objective": "sft", "tuner": "lora", "batch": {"records": 4}},
        "budget": {"updates": UPDATES},
        "evaluate": {"metric": "exact"},
    }
    noted = Walk(Path(luthier.__file__).parent)
    sys.setprofile(noted)
    try:
        run_recipe(load_recipe(recipe, [], []), folder / "run", ())
    finally:
        sys.setprofile(None)
    return noted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--functions", metavar="PHASE", help="list the functions that a phase enters")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        noted = walk(Path(folder))
    path = stations_of(NOW if (noted.package / "modalities").is_dir() else BEFORE)
    if arguments.functions:
        chosen = noted.phases.get(arguments.functions, dict.fromkeys(noted.calls))
        print("\n".join(f"{file}: {function}" for file, function in chosen))
        return
    check_order(path, noted.calls)
    sizes = {"main path": size(path), "whole run": size(list(dict.fromkeys(noted.calls)))}
    sizes |= {phase: size(list(stations)) for phase, stations in noted.phases.items()}
    if arguments.json:
        print(json.dumps(sizes, indent=1))
        return
    print(f"{'':24}{'functions':>10}{'files':>7}{'packages':>10}{'changes of file':>17}")
    for name, numbers in sizes.items():
        functions, files, packages, changes = numbers.values()
        print(f"{name:24}{functions:>10}{files:>7}{packages:>10}{changes:>17}")


if __name__ == "__main__":
    main()
