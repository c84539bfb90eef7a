"""The first method of a new family: its own files, and two files outside them, in a copy of the package.

The family learns from ranked lists: a new shape of records (a prompt with its answers, the best first), a new stream
(`rank`), and a check of its own. No file of the package is edited.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import luthier

PACKAGE = Path(luthier.__file__).parent
OUTSIDE = {
    "data/forms/ranked.py": '''
"""Ranked lists: a prompt and its answers, the best first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from luthier.data.forms.base import RecordShape
from luthier.errors import DataError
from luthier.types import Record, Stream


class Ranked(RecordShape):
    """A prompt with two or more answers as a list, the best first."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("prompt", "answers")
    FORM: ClassVar[str] = "ranked"

    def read(self, fields: Mapping[str, Any], origin: str) -> dict[str, Any]:
        answers = fields["answers"]
        if not isinstance(answers, list) or len(answers) < 2 or not all(isinstance(one, str) for one in answers):
            raise DataError(f"{origin}: `answers` must be a list of two or more strings, the best first.")
        return dict(fields)

    def sides(self, record: Record) -> tuple[tuple[str, Record], ...]:
        rest = {name: value for name, value in record.fields.items() if name != "answers"}
        return tuple(
            (f"rank-{rank}", replace(record, shape="prompt_completion", fields={**rest, "completion": answer}))
            for rank, answer in enumerate(record.fields["answers"])
        )

    def streams(self, record: Record) -> tuple[Mapping[str, Stream], ...]:
        return tuple({"rank": Stream(float(rank), "row")} for rank in range(len(record.fields["answers"])))
''',
    "conformance/needs/ranked.py": '''
"""Rows for objectives that learn from ranked lists, and the check that the ranks are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy

from luthier import parts
from luthier.conformance.base import Failed, apart
from luthier.conformance.tiny import VOCABULARY
from luthier.conformance.training import LAYOUTS, trained
from luthier.data.pairs import as_sides
from luthier.objectives.base import Objective
from luthier.types import Row, Stream


def rows(count: int, seed: int, targets: bool = True) -> list[Row]:
    """Lists of two to four answers of unequal length to one prompt."""
    draw = numpy.random.default_rng(seed)
    made: list[Row] = []
    for index in range(count):
        prompt = draw.integers(0, VOCABULARY, int(draw.integers(2, 6)))
        ranks = range(2 + index % 3)
        answers = [draw.integers(0, VOCABULARY, int(draw.integers(3, 9))) for _ in ranks]
        sides = []
        for answer in answers:
            weights = numpy.repeat(numpy.array([0.0, targets], numpy.float32), [len(prompt), len(answer)])
            ids = numpy.concatenate([prompt, answer]).astype(numpy.int32)
            sides.append(Row("", ids, {"weights": Stream(weights, "token")}))
        streams = [{"rank": Stream(float(rank), "row")} for rank in ranks]
        made += as_sides(f"record-{index}", sides, [f"rank-{rank}" for rank in ranks], streams)
    return made


def check_ranks_are_read(objective: Objective) -> None:
    """With the ranks turned round the gradient is another one."""
    lists, full, whole = rows(6, 0), parts.build("tuner", "full"), LAYOUTS["packed"]
    turned = [
        replace(row, streams={**row.streams, "rank": replace(stream, values=-float(stream.values))})
        for row in lists
        for stream in [row.streams["rank"]]
    ]
    if apart(*(trained(objective, full, whole, chosen) for chosen in (lists, turned))) < 1e-6:
        raise Failed("with the ranks turned round the gradient is the same: is `rank` read?")


def checks(objective: Objective) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of objectives that learn from ranked lists."""
    yield "ranked: the ranks are read", lambda: check_ranks_are_read(objective)
''',
}
OWN = {
    "objectives/ranking/__init__.py": "",
    "objectives/ranking/base.py": '''
"""Objectives of ranked lists: a loss per list of answers to one prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from luthier.errors import RecipeError
from luthier.objectives.base import Objective, Update, sequence_view
from luthier.parts import lazy
from luthier.types import Batch, Term

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from luthier.models.policy import TokenPolicy
else:
    torch = lazy("torch")


class ListObjective(Objective):
    """A loss per ranked list: write `list_loss(scores) -> scalar`, where scores [K] are mean log p, best answer first.

    LISTS_READ says how many of the best answers of each list are looked at; 0 looks at all.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ("ranked",)
    UNIT: ClassVar[str] = "records"
    LISTS_READ: ClassVar[int] = 0

    def list_loss(self, scores: Tensor) -> Tensor:
        """Loss, a scalar, of one list from its answers' scores [K], the best first."""
        raise RecipeError(f"{type(self).__name__} does not define `list_loss(self, scores)`.")

    def terms(self, policy: TokenPolicy, batch: Batch, update: Update) -> list[Term]:
        view = sequence_view(policy, batch, update)
        lists: dict[str, list[int]] = {}
        for row in torch.argsort(view.streams["rank"], stable=True).tolist():
            lists.setdefault(batch.records[row], []).append(row)
        times = {record: batch.examples.count(batch.examples[rows[0]]) for record, rows in lists.items()}
        update.meter("nll", -view.logprob.detach().sum(), "targets")
        losses = [
            self.list_loss(view.mean[rows[start :: times[record]]])
            for record, rows in lists.items()
            for start in range(times[record])  # a list that was drawn twice is two
        ]
        return [Term(torch.stack(losses).sum(), self.unit)]
''',
    "objectives/ranking/plackett_luce.py": '''
"""Plackett-Luce: the likelihood that the answers are drawn one after the other in the order of their ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from luthier.objectives.ranking.base import ListObjective
from luthier.parts import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")


class PlackettLuce(ListObjective):
    """-sum_k log softmax(beta s_k, ..., beta s_K)_k of each list, s being the mean log p of an answer."""

    SETTINGS: ClassVar = ({}, {"beta": 3.0})

    beta: float = Field(1.0, gt=0.0)

    def list_loss(self, scores: Tensor) -> Tensor:
        scaled = self.beta * scores
        return (scaled.flip(0).logcumsumexp(0).flip(0) - scaled).sum()
''',
    "methods/plackett_luce.yaml": "about: learns from ranked lists\nmethod: {train: {objective: plackett_luce}}\n",
}
TRAIN = """
import json, sys
from pathlib import Path
from typing import ClassVar
from luthier import families, load_recipe, parts, run
from luthier.conformance.matrix import run_checks
from luthier.errors import RecipeError
from luthier.recipe.methods import slot_of_file

folder = Path(sys.argv[1])
content = {"model": "nano", "data": {"train": "lists.jsonl", "test": 2}, "budget": {"updates": 3},
           "train": {"batch": {"records": 4}, "optimizer": {"lr": 1e-3}}, "evaluate": {"metric": "exact"}}
records = {}
for method in ("plackett_luce", "sft"):
    records[method] = run(load_recipe(content, [method], base=folder), folder / method, [])
try:
    run(load_recipe(content, ["dpo"], base=folder), folder / "dpo", [])
    refusal = ""
except RecipeError as error:
    refusal = str(error)
part = parts.load("objective", "plackett_luce")

class Blind(part):
    SETTINGS: ClassVar = ({},)
    def list_loss(self, scores):
        return -scores.sum()

print(json.dumps({
    "updates": {name: record["train"]["updates"] for name, record in records.items()},
    "rows": {name: record["train"]["records"] for name, record in records.items()},
    "losses": [records["plackett_luce"]["train"][key] for key in ("loss_first", "loss_last")],
    "evaluated": len((folder / "plackett_luce" / "evaluation.jsonl").read_text().splitlines()),
    "refusal": refusal,
    "constants": [name for name in parts.constants_of("objective") if name == "LISTS_READ"],
    "user": slot_of_file(folder / "mine.py"),
    "failed": [repr(outcome) for outcome in run_checks("objective", part) if not outcome.passed],
    "checks": [outcome.check for outcome in run_checks("objective", Blind) if not outcome.passed],
}))
"""


def plant(package):
    for name, text in {**OUTSIDE, **OWN}.items():
        assert not (PACKAGE / name).exists()
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text.lstrip("\n"))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What a process says that runs a copy of the package with the family's files in it."""
    folder = tmp_path_factory.mktemp("family")
    shutil.copytree(PACKAGE, folder / "luthier", ignore=shutil.ignore_patterns("__pycache__"))
    plant(folder / "luthier")
    words = [f"{a}{b}{c}" for a in "abc" for b in "fgh" for c in "kl"]
    lists = [{"prompt": f"reverse {word}", "answers": [word[::-1], word, word[:1]]} for word in words]
    (folder / "lists.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lists))
    (folder / "mine.py").write_text(
        "from luthier.objectives.ranking.base import ListObjective\n\n\nclass Mine(ListObjective):\n    pass\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TRAIN, str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])


def test_the_family_costs_at_most_four_files_outside_its_own():
    assert len(OUTSIDE) <= 4


def test_its_first_method_trains_and_is_evaluated(outcome):
    assert outcome["updates"] == {"plackett_luce": 3, "sft": 3}
    assert outcome["losses"][1] < outcome["losses"][0]
    assert outcome["evaluated"] >= 2  # near-duplicates stay together


def test_other_objectives_learn_the_best_answer_or_refuse(outcome):
    assert outcome["rows"] == {"plackett_luce": 12, "sft": 12}
    assert "`dpo` learns from pairs" in outcome["refusal"]


def test_it_passes_the_matrix_and_its_own_check(outcome):
    assert outcome["failed"] == []
    assert "ranked: the ranks are read" in outcome["checks"]


def test_constants_and_users_parts_of_the_family_are_known(outcome):
    assert outcome["constants"] == ["LISTS_READ"] and outcome["user"] == "objective"
