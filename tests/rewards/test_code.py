"""Programs in answers: which lines are the program, and that nothing but passed tests proves it."""

import pytest

from luthier.parts import build
from luthier.rewards._programs import fenced_blocks, program_of
from luthier.rewards.base import Answer
from luthier.types import Record

TESTS = "assert f(2) == 4"
PROGRAM = "def f(x): return 2 * x"
FENCE = "```"


def score(text, tests=TESTS, **options):
    record = Record("r", "prompt_completion", {"tests": tests}, "data.jsonl:1")
    return build("reward", {"kind": "code", "limit": 10, **options}).score(Answer(text, record)).value


def fenced(language, *lines, fence=FENCE):
    return "\n".join([f"{fence}{language}", *lines, fence])


RIGHT = {
    "no fence": PROGRAM,
    "python": fenced("python", PROGRAM),
    "python3": fenced("python3", PROGRAM),
    "with a title": fenced("python title=a.py", PROGRAM),
    "upper case": fenced("Python", PROGRAM),
    "carriage returns": fenced("python", PROGRAM).replace("\n", "\r\n"),
    "behind a shell": f"{fenced('bash', 'pip install x')}\nand then\n{fenced('python', PROGRAM)}",
    "no language, output behind": f"{fenced('', PROGRAM)}\nprints\n{fenced('', '4')}",
    "output named": f"{fenced('python', PROGRAM)}\nprints\n{fenced('text', '4')}",
    "indented": "1. so\n" + "\n".join(f"   {line}" for line in fenced("python", PROGRAM).split("\n")),
    "tildes": fenced("python", PROGRAM, fence="~~~"),
    "four signs around three": fenced("python", PROGRAM, 'text = """', FENCE, '"""', fence="````"),
    "not closed": f"{FENCE}python\n{PROGRAM}",
    "a call behind": f"{fenced('python', PROGRAM)}\nuse it:\n{fenced('python', 'print(f(2))')}",
    "a draft before": f"{fenced('python', 'def f(x): return 3 * x')}\nno:\n{fenced('python', PROGRAM)}",
    "a main part": fenced("python", PROGRAM, "if __name__ == '__main__': print(f(int(input())))"),
    "a main part that exits": fenced("python", PROGRAM, "import sys", "if __name__ == '__main__': sys.exit(0)"),
    "a dataclass": fenced(
        "python", "from dataclasses import dataclass", "@dataclass", "class A:", "    a: int", PROGRAM
    ),
}


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT.keys())
def test_a_right_program_is_found_in_its_answer(text):
    assert score(text) == 1
    assert score(text.replace("2 * x", "2 + x * 2")) == 0


FAKED = {
    "exit 77": "import sys; sys.exit(77)",
    "SystemExit": "raise SystemExit(77)",
    "exit()": "exit(0)",
    "at once, 77": "import os; os._exit(77)",
    "at once, 0": "import os; os._exit(0)",
    "a hook for errors": "import os, sys\nsys.excepthook = lambda *error: os._exit(0)\ndef f(x): return 1",
    "a function at exit": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef f(x): return 1",
    "a thread": "import os, threading\nthreading.Timer(0.05, lambda: os._exit(0)).start()\ndef f(x): return 1",
    "a child": "import os\nif os.fork(): os._exit(0)\ndef f(x): return 1",
    "bytes to all descriptors": "import os\nfor end in range(1, 40):\n    try:\n        os.write(end, b'x' * 32)\n"
    "    except OSError:\n        pass\nraise SystemExit(0)",
    "within the test": "def f(x): raise SystemExit(0)",
    "at once within the test": "import os\ndef f(x): os._exit(0)",
    "nothing": "",
    "half a character": "x = '\ud800'",
    "no Python": "def f(x) return 2",
    "closed descriptors": "import os\nos.closerange(3, 40)\ndef f(x): return 4",
}


@pytest.mark.parametrize("text", FAKED.values(), ids=FAKED.keys())
def test_no_end_of_a_program_proves_that_it_passed(text):
    assert score(text) == 0


def test_an_endless_child_does_not_hold_the_verdict():
    child = "import os, time\nif os.fork() == 0:\n    time.sleep(30)\n    os._exit(0)\n"
    assert score(child + PROGRAM) == 1
    assert score(child + "def f(x): return 1") == 0


def test_blocks_are_read_line_by_line():
    text = f"a\n{fenced('Bash -x', 'ls')}\n{fenced('', 'x = 1')}\n~~~\nb\n{FENCE}\nc"
    assert [(block.language, block.text) for block in fenced_blocks(text)] == [
        ("bash", "ls"), ("", "x = 1"), ("", f"b\n{FENCE}\nc")
    ]  # fmt: skip
    assert program_of(text) == "x = 1"
    assert program_of("x = 1") == "x = 1"
    assert program_of(fenced("js", "let a = 1;")) == fenced("js", "let a = 1;")
