"""The command line in this process: arguments in, exit code and texts out."""

import sys
from dataclasses import dataclass

import pytest

from luthier.cli.app import main
from luthier.recipe import methods


@dataclass
class Result:
    code: int
    out: str
    error: str


@pytest.fixture
def command(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["luthier", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with a short recipe in it; the package knows two methods."""
    packaged = tmp_path / "packaged"
    packaged.mkdir()
    for name in ("sft", "dft"):
        (packaged / f"{name}.yaml").write_text(f"about: by {name}\nmethod: {{train: {{objective: {name}}}}}\n")
    monkeypatch.setattr(methods, "FOLDER", packaged)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("model: ./model\ndata: {train: data.jsonl}\n")
    return tmp_path


@pytest.fixture
def room(monkeypatch):
    """Stands in for a function of a heavy room and records its calls."""

    def replace(name, function="anything"):
        import types

        path, _, last = name.rpartition(".")
        module = types.ModuleType(path)
        calls = []

        def record(*arguments, **options):
            calls.append((arguments, options))
            return function(*arguments, **options) if callable(function) else function

        setattr(module, last, record)
        monkeypatch.setitem(sys.modules, path, module)
        return calls

    return replace
