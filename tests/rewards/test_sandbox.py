"""What a program that a model wrote can reach, by the walls that the system has."""

import os
import socket
import subprocess
import sys
import time

import pytest

from luthier.errors import RunError
from luthier.parts import build
from luthier.rewards import _guard, _sandbox
from luthier.rewards._guard import run_python, run_tests
from luthier.rewards._sandbox import Walls, walls
from luthier.rewards.base import Answer
from luthier.types import Record

FULL = walls()
KINDS = {
    "both": FULL,
    "namespaces": Walls(FULL.namespaces, 0),
    "landlock": Walls(False, FULL.landlock),
}


@pytest.fixture(params=KINDS)
def behind(request, monkeypatch):
    """Which walls are up; skipped where this system has none of them."""
    chosen = KINDS[request.param]
    if (request.param != "landlock" and not FULL.namespaces) or (request.param != "namespaces" and not FULL.landlock):
        pytest.skip("this system has no such walls")
    monkeypatch.setattr(_guard, "walls", lambda: chosen)
    return request.param


def reached(source, seconds=5.0, megabytes=1024):
    """Whether the program got to its last line."""
    ran = run_python(f"{source}\nprint('REA' + 'CHED')", seconds, megabytes)
    return "REACHED" in ran.output


def test_a_plain_program_still_works(behind):
    assert reached("import json, math, random, tempfile, threading, dataclasses\nopen('a', 'w').write('x')")
    assert reached("import os\nassert open('a', 'w').write('x') and os.listdir('.') == ['a']\nos.remove('a')")
    assert reached("import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'print(1)'], check=True)")
    assert reached("import numpy\nassert numpy.ones(3).sum() == 3", megabytes=4096)
    assert run_tests("def double(x): return 2 * x", "assert double(2) == 4", 5, 512).proved
    assert not run_tests("def double(x): return 3 * x", "assert double(2) == 4", 5, 512).proved


def test_the_users_files(behind, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("gold")
    programs = [
        f"open({str(secret)!r}).read()",
        f"open({str(secret)!r}, 'w')",
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"import os\nos.listdir({str(tmp_path)!r})",
        f"import os\nos.rename({str(secret)!r}, {str(tmp_path / 'moved')!r})",
        f"import os\nos.remove({str(secret)!r})",
        f"import os\nos.truncate({str(secret)!r}, 0)",
        "open('/dev/shm/left', 'w')",
        "open('/etc/passwd').read()",
    ]
    held = [not reached(program) for program in programs]
    assert all(held) == (behind != "namespaces")
    if behind != "namespaces":
        assert secret.read_text() == "gold" and [path.name for path in tmp_path.iterdir()] == ["secret.txt"]


def test_the_trainers_keys_and_memory(behind, monkeypatch):
    monkeypatch.setenv("FAKE_API_KEY", "sk-1")
    own = os.getpid()
    for program in (
        f"assert 'FAKE' in open('/proc/{own}/environ').read()",
        f"open('/proc/{own}/mem', 'r+b')",
        "import os\nassert 'FAKE' in open(f'/proc/{os.getppid()}/environ').read()",
        "import os\nassert any('FAKE' in value for value in os.environ)",
    ):
        assert not reached(program)


def test_other_processes(behind):
    if behind == "landlock" and FULL.landlock < 6:
        pytest.skip("this Landlock knows no signals")
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    try:
        assert not reached(f"import os\nos.kill({other.pid}, 9)") and other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
def test_the_network(behind, kind):
    if behind == "landlock" and (kind == "SOCK_DGRAM" or FULL.landlock < 4):
        pytest.skip("Landlock holds TCP alone")
    with socket.socket(socket.AF_INET, getattr(socket, kind)) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(0.2)
        if kind == "SOCK_STREAM":
            listening.listen()
        address = listening.getsockname()
        reached(f"import socket\ns = socket.socket(socket.AF_INET, socket.{kind})\ns.connect({address})\ns.send(b'x')")
        with pytest.raises(TimeoutError):
            listening.accept() if kind == "SOCK_STREAM" else listening.recv(10)


def test_children_end_with_the_program(behind):
    if behind == "landlock":
        pytest.skip("without namespaces a child in a session of its own outlives the program")
    mark = f"97{os.getpid()}.25"
    program = f"import subprocess\nsubprocess.Popen(['sleep', '{mark}'], start_new_session=True)"
    assert reached(program)
    time.sleep(0.1)
    processes = [path for path in os.listdir("/proc") if path.isdecimal()]
    for process in processes:
        try:
            with open(f"/proc/{process}/cmdline") as line:
                assert mark not in line.read()
        except OSError:
            pass


def test_the_disk(behind):
    if behind == "landlock":
        pytest.skip("without namespaces files are limited one by one")
    assert not reached("for i in range(12):\n    open(str(i), 'wb').write(bytes(15_000_000))")


def test_processes_are_limited(behind):
    if os.geteuid() == 0:
        pytest.skip("an administrator's processes are not counted")
    loop = "import os, time\nfor i in range(200):\n    if os.fork() == 0:\n        time.sleep(3)\n        os._exit(0)"
    assert not reached(loop)


def test_no_program_runs_on_open_ground(monkeypatch):
    reward = build("reward", "code")
    answer = Answer("x = 1", Record("r", "prompt_completion", {"tests": "assert x == 1"}, "d.jsonl:1"), "")
    monkeypatch.setattr(_sandbox, "walls", lambda: Walls(False, 0))
    monkeypatch.delenv(_sandbox.UNPROTECTED, raising=False)
    with pytest.raises(RunError, match="could reach the user's files, the network, other processes"):
        reward.score(answer)
    monkeypatch.setenv(_sandbox.UNPROTECTED, "1")
    assert reward.score(answer).value == 1.0


def test_what_is_missing_is_said():
    assert Walls(True, 7).missing == []
    assert Walls(False, 0).missing == ["the user's files", "the network", "other processes"]
    assert Walls(False, 7).missing == ["the network by other protocols than TCP", "other processes' names"]
    assert Walls(True, 0).missing == ["the user's files"]
