"""What a reward returns becomes plain numbers, and its limit of time holds whatever it does."""

import contextlib
import json
import signal
import threading
import time

import numpy
import pytest
import torch

from luthier.rewards._guard import TooSlow, within
from luthier.rewards.base import Answer, Judged, Reward, build_rewards
from luthier.types import Record


def answer(text="", gold=""):
    return Answer(text, Record("r", "prompt_completion", {}, "data.jsonl:3"), gold)


class Returns(Reward):
    """Returns the same for every answer."""

    def __init__(self, returned):
        super().__init__()
        self._returned = returned

    def score(self, answer):
        return self._returned


@pytest.mark.parametrize(
    "returned, value, parts",
    [
        (Judged(1.0, {"words": None, "chars": 3}), 1.0, {"chars": 3.0}),
        (Judged(1.0, {"words": float("nan")}), 1.0, {}),
        (Judged(torch.tensor(1.0), {"half": numpy.float32(0.5)}), 1.0, {"half": 0.5}),
        (Judged(numpy.float64(0.5), None, None), 0.5, {}),
        (torch.tensor(0.5), 0.5, {}),
        (numpy.int64(2), 2.0, {}),
        (True, 1.0, {}),
    ],
)
def test_what_a_reward_returns_becomes_plain_numbers(returned, value, parts):
    log = []
    verdict = build_rewards([Returns(returned)], log=log.append)([answer()])[0]
    assert verdict.value == value and type(verdict.value) is float and not log
    assert {name.partition(".")[2]: part for name, part in verdict.parts.items() if "." in name} == parts
    json.dumps(dict(verdict.parts))


@pytest.mark.parametrize(
    "returned",
    [
        "0.5",
        b"1",
        [1.0],
        {"a": 1},
        Judged("1"),
        Judged(1.0, {"a": "2"}),
        Judged(1.0, {"a": [1]}),
        Judged(1.0, passes=3),
    ],
)
def test_what_is_no_number_is_a_failure_that_is_logged(returned):
    log = []
    assert build_rewards([Returns(returned), "math"], log=log.append)([answer("1", "1")])[0].value == 1.0
    assert [line["reward"] for line in log] == ["test_guard"]


def test_a_weighted_sum_that_is_infinite_is_a_failure():
    log = []
    verdicts = build_rewards([{"reward": Returns(1e308), "weight": 10}], log=log.append)([answer()])
    assert verdicts[0].value is None and "inf" in log[0]["error"]


def swallows(seconds):
    """Runs for so long, whatever is raised in between."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(BaseException):
            time.sleep(0.01)


def gives_a_verdict_anyway():
    try:
        time.sleep(5)
    except BaseException:
        return 0.0


def takes_the_alarm():
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.alarm(1)
    swallows(0.8)
    return 1.0


@pytest.mark.parametrize("work", [lambda: swallows(0.8), gives_a_verdict_anyway, takes_the_alarm])
def test_a_verdict_after_the_limit_of_time_does_not_count(work):
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TooSlow):
        within(0.1, work)
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_limit_of_time_holds_outside_the_main_thread_too():
    outcomes = []

    def work():
        try:
            within(0.05, lambda: time.sleep(5))
        except TooSlow as error:
            outcomes.append(error)
        outcomes.append(within(5, lambda: 3))
        try:
            within(5, lambda: 1 / 0)
        except ZeroDivisionError as error:
            outcomes.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(4)
    assert [type(outcome) for outcome in outcomes] == [TooSlow, int, ZeroDivisionError]
