import sys
from pathlib import Path

import pytest

WORKER = (sys.executable, str(Path(__file__).parents[1] / "support" / "fake_worker.py"))


@pytest.fixture
def worker():
    """The command of a worker that trains nothing; FAKE_ORDERS tells it what to do wrong."""
    return WORKER


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe in an empty folder, which is the current one; nothing loads its model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "wide.yaml").write_text(
        "about: more rank\nmethod: {train: {tuner: {kind: lora, r: 64}}}\n"
        "advice: {train: {optimizer: {lr: 5e-5}}, budget: {epochs: 7}}\n"
    )
    (tmp_path / "mine.yaml").write_text("model: nano\ndata: {train: data.jsonl}\nbudget: {epochs: 1}\n")
    return tmp_path / "mine.yaml"
