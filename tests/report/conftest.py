import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from luthier.compare import compare

WORKER = (sys.executable, str(Path(__file__).parents[1] / "support/fake_worker.py"))
HOSTILE = "<b>x</b> & 50%_$#{a}|`*"


def make(folder, **arguments):
    (folder / "data.jsonl").write_text('{"text": "one"}\n')
    (folder / "mine.yaml").write_text("model: nano\ndata: {train: data.jsonl}\nbudget: {epochs: 1}\n")
    console = Console(file=io.StringIO())
    report = compare(folder / "mine.yaml", folder=folder / "out", console=console, command=WORKER, **arguments)
    return json.loads((report.parent / "results.json").read_text())


@pytest.fixture(scope="session")
def several(tmp_path_factory):
    """Results of three methods over three seeds."""
    patch = pytest.MonkeyPatch()
    patch.setenv("FAKE_ORDERS", json.dumps({"items": 60}))
    yield make(tmp_path_factory.mktemp("several"), methods=["sft", "dft", "asft"], seeds=3)
    patch.undo()


@pytest.fixture(scope="session")
def single(tmp_path_factory):
    """Results of one seed, with a failed run."""
    patch = pytest.MonkeyPatch()
    patch.setenv("FAKE_ORDERS", json.dumps({"items": 40, "crash": ["/dft/"]}))
    yield make(tmp_path_factory.mktemp("single"), methods=["sft", "dft", "asft"])
    patch.undo()


@pytest.fixture
def spending(several):
    """Results with tokens beside training: dft looked and generated."""
    changed = json.loads(json.dumps(several))
    changed["rows"][2]["cost"] |= {"looked_tokens": 1_200_000, "generated_tokens": 34_567}
    return changed


@pytest.fixture
def hostile(single):
    """Results in which everything a user can name holds markup."""
    changed = json.loads(json.dumps(single).replace('"sft"', json.dumps(HOSTILE)))
    changed["name"] = changed["setup"]["model"]["path"] = HOSTILE
    changed["warnings"] = [HOSTILE]
    changed["failures"][0].update(error=HOSTILE, log=[HOSTILE])
    for sample in changed["samples"]:
        sample.update(prompt=HOSTILE, reference=HOSTILE, id=HOSTILE)
    return changed
