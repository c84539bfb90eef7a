"""What the processes that we start import, and how their threads wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import luthier
from luthier.compare.execute import execute
from luthier.compare.plan import plan
from luthier.processes.launch import WORKER, Workers
from luthier.threads import ENOUGH, SPINS
from support.runs import recipe, with_words

SOURCE = str(Path(luthier.__file__).parents[1])
VARIABLES = (SPINS, "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "PYTHONSAFEPATH")


def output(*arguments, folder=None, **more):
    """The output of a Python process, without the variables that this very process has set."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= {"PYTHONPATH": SOURCE, **more}
    finished = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


PRINT = f"import os; print(os.environ.get('{SPINS}'))"
WARN = "from luthier.threads import spinning_warning; print(spinning_warning())"


def test_threads_sleep_soon_where_luthier_comes_before_torch():
    assert output("-c", f"import luthier; {PRINT}") == ENOUGH
    assert output("-c", f"import luthier; {WARN}") == ""


@pytest.mark.parametrize("name, value", [(SPINS, "77"), ("OMP_WAIT_POLICY", "active"), ("KMP_BLOCKTIME", "0")])
def test_what_the_user_has_set_stays(name, value):
    assert output("-c", f"import luthier; {PRINT}", **{name: value}) == ("77" if name == SPINS else "None")
    assert output("-c", f"import sys; sys.modules['torch'] = sys; import luthier; {WARN}", **{name: value}) == ""


def test_torch_before_luthier_is_said():
    code = "import sys; sys.modules['torch'] = sys; import luthier; "
    assert output("-c", code + PRINT) == "None"
    assert "torch was imported before luthier" in output("-c", code + WARN)


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A current folder whose files are called like modules that a run imports."""
    for name in ("torch", "json", "numpy", "luthier", "random", "yaml"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'MARK')!r}, 'a').write('{name} ')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", [None, WORKER])
def test_workers_import_nothing_from_the_current_folder(trap, command):
    tasks = plan(recipe(with_words(trap), "budget.updates=1"), methods=["sft"], seeds=1).runs({})

    class Silent:
        def __getattr__(self, _name):
            return lambda *_arguments, **_options: None

    with Workers(command) as workers:
        assert execute(tasks, trap / "out", Silent(), workers) == {"sft/seed-0": 0}
    assert not (trap / "MARK").exists()


def test_the_module_as_a_command_imports_nothing_from_the_current_folder(trap):
    (trap / "luthier.py").unlink()  # `python -m luthier` cannot tell whose module is meant
    assert "luthier" in output("-m", "luthier", "--version", folder=trap)
    assert output("-m", "luthier", "keys", "train.batch", folder=trap)
    assert not (trap / "MARK").exists()
