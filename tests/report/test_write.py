import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from luthier.errors import RunError
from luthier.report import print_report, write_report


def test_every_format(several, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(several))
    names = [write_report(tmp_path, form).name for form in ("html", "markdown", "csv", "latex", "json")]
    assert names == ["report.html", "report.md", "results.csv", "table.tex", "results.json"]
    assert all((tmp_path / name).stat().st_size > 300 for name in [*names, "setup.md"])


def test_mistakes(tmp_path):
    with pytest.raises(RunError, match=r"no results\.json"):
        write_report(tmp_path)
    with pytest.raises(RunError, match="latex"):
        write_report(tmp_path, "latx")


@pytest.mark.parametrize("width", [70, 100, 140])
def test_the_console_table_fits(several, width):
    console = Console(file=io.StringIO(), width=width)
    print_report(several, console)
    text = console.file.getvalue()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "asft" in text and "target" in text


def test_markup_in_names_is_no_style(hostile):
    hostile["rows"][1]["label"] = "[bold]sft[/bold]"
    console = Console(file=io.StringIO(), width=200)
    print_report(hostile, console)
    assert "[bold]sft[/bold]" in console.file.getvalue()


def test_neither_torch_nor_matplotlib_is_imported_until_needed():
    code = "import sys, luthier.report; sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
