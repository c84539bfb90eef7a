"""Answers that are Python programs."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from luthier.rewards._guard import run_tests
from luthier.rewards._programs import program_of
from luthier.rewards._sandbox import refuse_open_ground
from luthier.rewards.base import Answer, Judged, Reward


class Code(Reward):
    """1 for a Python program that passes the record's tests, else 0.

    The program is the last fenced block of Python in the answer, the last block without a language, or the whole
    answer; a last block that only calls what earlier ones define follows them. The tests are Python text in the
    record's column `column`, run behind the program (`assert` lines, for example). Each program runs in a process of
    its own, as no main program, for at most `limit` seconds and `megabytes` of memory. It has passed only if a random
    token arrives from behind the last test: no exit status counts. What stays possible is a program that makes the
    tests true (an `__eq__` that is always true), or that searches its own process for the token. Programs run behind
    the walls that the system has (SECURITY.md), and not at all where it has none. None if the record has no tests.
    """

    SETTINGS: ClassVar = ({}, {"column": "checks"}, {"limit": 0.2}, {"megabytes": 64})
    EXAMPLES: ClassVar = (
        ({}, {"text": "```python\ndef double(x):\n    return 2 * x\n```", "tests": "assert double(2) == 4"}, 1.0),
        ({}, {"text": "def double(x):\n    return x", "tests": "assert double(2) == 4"}, 0.0),
        ({}, {"text": "raise SystemExit", "tests": "assert True"}, 0.0),
        ({}, {"text": "import os; os._exit(77)", "tests": "assert False"}, 0.0),
        ({"column": "checks"}, {"text": "x = 1", "tests": "assert x == 2", "checks": "assert x == 1"}, 1.0),
        ({}, {"text": "x = bytearray(10**8)", "tests": "import time; time.sleep(0.4)"}, 1.0),
        ({}, {"text": "x = 1"}, None),
    )

    column: str = Field(
        "tests",
        description="Column of the record with the tests: Python text that runs behind the program, such as `assert` "
        "lines.",
    )
    limit: float = Field(
        5.0,
        gt=0,
        description="Seconds that a program may take together with its tests; one that takes longer is worth 0. Raise "
        "it for slow tests.",
    )
    megabytes: int = Field(
        512,
        gt=0,
        description="Memory in MiB that a program may use; one that asks for more fails with an error.",
    )
    seconds: float = Field(
        60.0,
        gt=0,
        description="Seconds allowed for judging one answer; keep it above `limit`, so that a slow program is worth 0 "
        "and not left out.",
    )

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.column,)

    def score(self, answer: Answer) -> Judged:
        tests = answer.record.fields.get(self.column)
        if not tests:
            return Judged(None)
        refuse_open_ground()
        ran = run_tests(program_of(answer.text), str(tests), self.limit, self.megabytes)
        return Judged(float(ran.proved), {"slow": float(ran.status is None)})
