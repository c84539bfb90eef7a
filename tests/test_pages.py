"""What the pages of docs/ tell to do works: their code, recipes and tables are taken from the pages as they stand."""

import math
import re
import runpy
import sys
from pathlib import Path

import pytest

from luthier.cli.app import main

ROOT = Path(__file__).parent.parent
DOCS, EXAMPLES = ROOT / "docs", ROOT / "examples"


def blocks(page, language):
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)


def named(page, language):
    """Those that begin with a comment, by what it says."""
    firsts = ((block.split("\n", 1)[0], block) for block in blocks(page, language))
    return {first.removeprefix("# "): block for first, block in firsts if first.startswith("# ")}


LOSSES = named("write_a_loss.md", "python")


def luthier(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["luthier", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_the_page_trains(name, tmp_path, monkeypatch, capsys):
    from luthier import run
    from luthier.recipe.load import load_recipe

    (tmp_path / name).write_text(LOSSES[name])
    strings = {"kind": "strings", "tasks": ["sort"], "count": 24}
    data = {"kind": "pairs", "of": strings} if name == "hinge.py" else strings
    changes = {"extends": str(EXAMPLES / "small.yaml"), "data": {"train": data}, "train": {"objective": f"./{name}"}}
    facts = run(load_recipe(changes, base=tmp_path), tmp_path / "run", [])["train"]
    assert facts["updates"] == 2 and facts["target_tokens"] > 0 and math.isfinite(facts["loss_last"])


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_the_page_passes_the_checks(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(LOSSES[name])
    luthier(monkeypatch, "check", f"./{name}")
    assert "passes the matrix" in capsys.readouterr().out


def test_from_a_csv_to_a_model_that_answers(tmp_path, monkeypatch, capsys):
    page = "start_with_your_data.md"
    code = named(page, "python")
    monkeypatch.chdir(tmp_path)
    writes_csv = next(block for block in blocks(page, "python") if "questions.csv" in block)
    exec(writes_csv, {})
    assert Path("questions.csv").read_text().splitlines()[:4] == blocks(page, "csv")[0].splitlines()
    Path("recipe.yaml").write_text(named(page, "yaml")["recipe.yaml"])

    luthier(monkeypatch, "check", "recipe.yaml")
    told = capsys.readouterr().out
    shown = next(block for block in blocks(page, "") if block.startswith("read "))
    assert [line for line in shown.splitlines() if line not in map(str.rstrip, told.splitlines())] == []

    luthier(monkeypatch, "compare", "recipe.yaml", "--methods", "sft", "--seeds", "1")
    names: dict = {}
    exec(code["transformers"], names)
    assert re.fullmatch("[a-z]+", names["answer"])
    exec(code["peft"], {})
    merged: dict = {}
    exec(code["transformers"].replace("runs/recipe/1/sft/seed-0/model", "merged"), merged)
    assert merged["answer"] == names["answer"]


@pytest.mark.slow
def test_what_fits_on_a_gpu_is_what_the_script_prints(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    runpy.run_path(str(ROOT / "bench" / "what_fits.py"), run_name="__main__")
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) == 2 + 3 * 2
    page = (DOCS / "on_a_gpu.md").read_text().splitlines()
    assert [line for line in printed if line not in page] == []


def test_the_tree_in_the_readme_names_every_package():
    tree = (ROOT / "README.md").read_text().split("src/luthier/\n", 1)[1].split("```", 1)[0]
    packages = {path.parent for path in (ROOT / "src" / "luthier").glob("*/*") if path.suffix in (".py", ".yaml")}
    assert [path.name for path in sorted(packages) if not re.search(rf"\b{path.name}/", tree)] == []
