import os
import subprocess
import sys
from pathlib import Path

import pytest

import luthier
from luthier.errors import RecipeError, RunError


def test_help_fits_on_a_screen(command):
    shown = command("--help")
    assert len(shown.out.splitlines()) < 25
    for command in ("compare", "run", "check", "methods", "eval", "report"):
        assert f"  {command}" in shown.out


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["run", "gone.yaml"], "There is no recipe gone.yaml.", "mine.yaml"),
        (["run", "mine.yaml", "sed=1"], "there is no key `sed`", "`seed`"),
        (["run", "mine.yaml", "train.tuner=lorra"], "no tuner called `lorra`", "`lora`"),
        (["run", "mine.yaml", "--resume", "gone"], "no run folder gone", "runs/name/1"),
        (["compare", "mine.yaml", "--seeds", "x"], "--seeds x", "--seeds 3"),
        (["compare", "mine.yaml", "--resume", "gone"], "no run folder gone", "runs/name/1"),
        (["check", "gone.py"], "no part file gone.py", ""),
        (["methods", "gone.py"], "no part file gone.py", ""),
        (["methods", "lorra"], "no method or part called `lorra`", "`lora`"),
        (["report", "gone"], "no run folder gone", "runs/name/1"),
    ],
)
def test_mistakes_are_told_without_a_traceback(command, here, arguments, message, hint):
    result = command(*arguments)
    assert result.code in (1, 2)
    first, *rest = result.error.splitlines()
    assert first.startswith("error: ")
    assert message in first
    assert hint in "\n".join(rest)
    assert "Traceback" not in result.error


def test_exit_codes_of_errors(command, here, room):
    def fail(*_):
        raise RunError("it broke")

    room("luthier.steps.run_recipe", fail)
    assert command("run", "mine.yaml").code == 1
    assert command("run", "mine.yaml", "x").code == 2


@pytest.mark.parametrize("arguments", [["--debug", "run", "gone.yaml"], ["run", "gone.yaml", "--debug"]])
def test_debug_shows_the_traceback(command, here, arguments):
    with pytest.raises(RecipeError):
        command(*arguments)


def test_ctrl_c_is_no_traceback(command, here, room):
    def interrupted(*_):
        raise KeyboardInterrupt

    room("luthier.steps.run_recipe", interrupted)
    result = command("run", "mine.yaml")
    assert result.code == 130
    assert "Traceback" not in result.error


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["run"], ["report", ".", "--format", "pdf"], ["run", "a", "--nothing"]]
)
def test_usage_errors(command, arguments):
    result = command(*arguments)
    assert result.code == 2
    assert "Traceback" not in result.error


def test_a_closed_pipe_is_quiet(here):
    code = f"{sys.executable} -m luthier methods | head -1"
    environment = {**os.environ, "PYTHONPATH": str(Path(luthier.__file__).parents[1])}
    finished = subprocess.run(["bash", "-c", code], capture_output=True, text=True, env=environment)
    assert (finished.stdout[:7], finished.stderr) == ("methods", "")
