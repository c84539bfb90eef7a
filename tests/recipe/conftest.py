"""A folder to write recipes and methods in, and short ways to write them."""

import textwrap

import pytest

from luthier.recipe import methods

SHORT = """
model: ./model
data: {train: data.jsonl}
"""


class Workshop:
    def __init__(self, folder):
        self.folder = folder

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    def recipe(self, text="", name="mine.yaml"):
        return self.write(name, SHORT + textwrap.dedent(text))


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """The current folder, empty, with a package that knows three methods."""
    packaged = tmp_path / "packaged"
    monkeypatch.setattr(methods, "FOLDER", packaged)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    made = Workshop(folder)
    made.write("../packaged/sft.yaml", "about: plain\nmethod: {train: {objective: sft}}\n")
    made.write(
        "../packaged/dft.yaml",
        "about: dynamic\nmethod: {train: {objective: dft}}\n"
        "advice: {train: {optimizer: {lr: 5e-5}}, budget: {epochs: 3}}\n",
    )
    made.write("../packaged/lora8.yaml", "about: small adapter\nmethod: {train: {tuner: {kind: lora, r: 8}}}\n")
    return made
