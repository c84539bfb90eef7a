"""How far a reader walks through the code: functions, files and changes of file of one training.

    python bench/walk.py                     # one training record; under a minute on one core
    python bench/walk.py --path rollout      # or `recipe`: is that list of docs/design.md entered in its order?
    git archive 8607436 | tar x -C /tmp/before && PYTHONPATH=/tmp/before/src python bench/walk.py

The training is sft with LoRA on `nano`: 12 records, 4 updates, evaluation included, all in this process.
`sys.setprofile` reports every call of a Python function in a file of the package; lambdas, comprehensions, class and
module bodies are left out, and the package is imported before. A phase has the functions that are entered while its
first function runs; each counts once, where it is entered first. The *main path* is the first list under "call path"
in docs/design.md: functions that a record passes on its way from the file to the step of the optimiser. The script
fails unless each is entered after the one before. `changes` counts where the next function lies in another file,
`returns` the changes to a file that was open before.

BEFORE is the same path at commit 8607436; docs/design.md names for each of its functions the one that does this now.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "design.md"
RECORDS, HELD_OUT, UPDATES = 12, 4, 4
HEADINGS = {"record": "### 1.", "rollout": "### 2.", "recipe": "### 3."}
STATIONS = re.compile(
    r"^(?P<place>\d+\.|    -) `(?P<file>[\w/]+\.py)`: (?P<functions>`[\w.]+`(?:, `[\w.]+`)*)", re.MULTILINE
)
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
engine/trainer.py: Trainer._select Trainer._update Trainer._within_memory Trainer._try_update
engine/trainer.py: Trainer._moving Trainer._batches
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
            is_function = code.co_flags & inspect.CO_OPTIMIZED and "<" not in name  # a class body is no function
            ours = path.is_relative_to(self.package) and is_function
            self.names[code] = (str(path.relative_to(self.package)), name) if ours else None
        return self.names[code]


def stations_of_page(name: str, nested: bool = False, page: Path = PAGE) -> list[Station]:
    """The stations of one list of docs/design.md; `nested` ones are entered in the process of a run."""
    section = page.read_text(encoding="utf-8").partition(f"\n{HEADINGS[name]}")[2].partition("\n#")[0]
    stations = []
    for match in STATIONS.finditer(section):
        if nested == (match["place"] == "    -"):
            stations += [(match["file"], function) for function in re.findall(r"`([\w.]+)`", match["functions"])]
    return stations


def stations_of(text: str) -> list[Station]:
    """The stations of BEFORE: one file a line, with the functions that are entered there one after the other."""
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
    """Functions, their files and packages, changes of file in this order, and returns to a file."""
    files = [file for file, _ in stations]
    changes = sum(file != following for file, following in pairwise(files))
    return {
        "functions": len(stations),
        "files": len(set(files)),
        "packages": len({file.split("/")[0] for file in files}),
        "changes": changes,
        "returns": changes + 1 - len(set(files)),
    }


def recipe_of(folder: Path) -> dict[str, Any]:
    """The recipe of the training, with its data in `folder`."""
    pairs = [{"prompt": f"Say {number} twice.", "completion": f"{number} {number}"} for number in range(100, 116)]
    for name, chosen in (("train", pairs[:RECORDS]), ("test", pairs[-HELD_OUT:])):
        lines = [json.dumps(pair) for pair in chosen]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "model": "nano",
        "data": {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl"), "validation": None},
        "train": {"objective": "sft", "tuner": "lora", "batch": {"records": 4}},
        "budget": {"updates": UPDATES},
        "evaluate": {"metric": "exact"},
    }


def train(folder: Path, **blocks: Any) -> None:
    """Train and evaluate in this process."""
    from luthier.recipe import load_recipe
    from luthier.steps.run import run_recipe

    run_recipe(load_recipe({**recipe_of(folder), **blocks}, [], []), folder / "run", ())


def roll_out(folder: Path) -> None:
    """Train on rollouts; the reward differs between answers, so that there is something to learn."""
    rollout = {
        "strategy": {"kind": "plain", "group": 4},
        "advantages": ["group_norm"],
        "generate": {"max_new_tokens": 16},
    }
    objective = {"objective": "grpo", "tuner": "lora", "batch": {"records": 2}}
    train(folder, rl=rollout, reward="length", train=objective)


def compare(folder: Path) -> None:
    """Run the command `luthier compare`; the runs are processes of their own, which are not traced."""
    from luthier.cli.app import main as command_line

    recipe = {**recipe_of(folder), "compare": {"methods": ["sft", "dft"], "seeds": 1}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    sys.argv = ["luthier", "compare", str(folder / "recipe.yaml"), f"out={folder / 'runs'}"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        command_line()


def walk(job: Callable[[Path], None]) -> Walk:
    """Do a job in a temporary folder while every call is noted."""
    import luthier
    import luthier.steps.run

    noted = Walk(Path(luthier.__file__).parent)
    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(noted)
        try:
            job(Path(folder))
        finally:
            sys.setprofile(None)
    return noted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", choices=HEADINGS, default="record", help="the list of docs/design.md to check")
    parser.add_argument("--list", metavar="PHASE", help="list the functions that a phase enters, or `all`")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    arguments = parser.parse_args()
    noted = walk({"record": train, "rollout": roll_out, "recipe": compare}[arguments.path])
    if arguments.list:
        chosen = noted.phases.get(arguments.list, dict.fromkeys(noted.calls))
        print("\n".join(f"{file}: {function}" for file, function in chosen))
        return

    before = not (noted.package / "modalities").is_dir()
    path = stations_of(BEFORE) if before else stations_of_page(arguments.path)
    check_order(path, noted.calls)
    sizes = {"main path": size(path), "whole run": size(list(dict.fromkeys(noted.calls)))}
    sizes |= {phase: size(list(stations)) for phase, stations in noted.phases.items() if stations}
    if arguments.json:
        print(json.dumps(sizes, indent=1))
        return
    print(f"{'':24}" + "".join(f"{name:>11}" for name in sizes["main path"]))
    for name, numbers in sizes.items():
        print(f"{name:24}" + "".join(f"{number:>11}" for number in numbers.values()))


if __name__ == "__main__":
    main()
