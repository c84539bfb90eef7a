"""Texts of files and servers are shown on the terminal, and never carried out."""

import io
import json

import pytest
from rich.markup import escape
from rich.table import Table
from typer.testing import CliRunner

from luthier.cli.app import app
from luthier.console import Terminal
from luthier.terminal import printable

TITLE, CLEAR, CLIPBOARD = "\x1b]0;TITLE\x07", "\x1b[2J", "\x1b]52;c;cHdu\x07"
HOSTILE = f"x{TITLE}{CLEAR}{CLIPBOARD}\x9b2J\u202egnp.\r\x08y"


def shown(renderable):
    stream = io.StringIO()
    Terminal(file=stream, force_terminal=True, color_system="truecolor", width=200).print(renderable)
    return stream.getvalue()


def test_controls_become_escapes():
    assert printable(HOSTILE) == r"x\x1b]0;TITLE\x07\x1b[2J\x1b]52;c;cHdu\x07\x9b2J\u202egnp.\r\x08y"
    assert printable("tab\tline\nümlaut 漢字 🎻") == "tab\tline\nümlaut 漢字 🎻"


def test_the_console_shows_controls_and_keeps_its_own_colours():
    table = Table("name")
    table.add_row(escape(HOSTILE))
    for text in (shown(escape(HOSTILE)), shown(table)):
        assert TITLE not in text and CLEAR not in text and CLIPBOARD not in text
        assert "\x9b" not in text and "\u202e" not in text and r"x\x1b" in text
    assert shown("[red]warm[/red]").startswith("\x1b[31mwarm")


HIDDEN_IN = {
    "id": {"id": HOSTILE},
    "a column's name": {HOSTILE: "z"},
    "an answer": {"completion": HOSTILE},
    "what is no text": {"completion": [HOSTILE]},
}


@pytest.mark.parametrize("where", HIDDEN_IN)
def test_no_command_passes_controls_on(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"copy: {letter}", "completion": letter} for letter in "abcdefgh"]
    rows[0] |= HIDDEN_IN[where]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text("model: nano\ndata: {train: d.jsonl, validation: null, test: 2}\n")
    result = CliRunner().invoke(app, ["check", "r.yaml"])
    assert result.output and not set(result.output) & set("\x1b\x07\x08\x9b\u202e\r")
