"""The HTTP sampler against a small server that answers, refuses, hangs and breaks."""

import json
import threading
import time

import pytest

from luthier.errors import RunError
from luthier.sampling.http import HttpSampler
from luthier.types import Request, Sampling
from support.served import completion, serving


class Letters:
    """One token per character."""

    def __len__(self):
        return 0x110000

    def decode(self, ids, **options):
        return "".join(map(chr, ids))

    def __call__(self, text, **options):
        return {"input_ids": [ord(letter) for letter in text]}


def asking(count):
    return [Request([*map(ord, f"ask {i}: ")], f"r{i}", forced_ids=[ord("F")], seed=i) for i in range(count)]


def test_answers_come_in_order_and_side_by_side():
    barrier = threading.Barrier(4)  # passes only if four requests are under way at once

    def answer(body, number):
        barrier.wait(10)
        return completion(body["prompt"].upper(), "length" if "3" in body["prompt"] else "stop")

    progress = []
    with serving(answer) as (url, asked):
        sampler = HttpSampler(url, "tiny", Letters(), concurrency=4, token="secret")
        trajectories = sampler(asking(8), Sampling(20, 0.5, top_p=0.9, min_p=0.1, stop=("#",)), progress.append)
    assert [Letters().decode(t.ids) for t in trajectories] == [f"FASK {i}: F" for i in range(8)]
    assert [t.finish for t in trajectories] == ["length" if i == 3 else "stop" for i in range(8)]
    assert [t.record for t in trajectories] == [f"r{i}" for i in range(8)] and progress == [*range(1, 9)]
    assert {request["path"] for request in asked} == {"/v1/completions"} and {
        request["token"] for request in asked
    } == {"Bearer secret"}
    wanted = {"model": "tiny", "max_tokens": 20, "temperature": 0.5, "top_p": 0.9, "min_p": 0.1, "stop": ["#"]}
    assert all(wanted.items() <= request.items() for request in asked) and {request["seed"] for request in asked} == {
        *range(8)
    }


class Pairs(Letters):
    """Letters, and one token more for `ab`."""

    def __len__(self):
        return 301

    def decode(self, ids, **options):
        return "".join("ab" if token == 300 else chr(token) for token in ids)


@pytest.mark.parametrize(
    "sent, used",
    [
        ([300, ord("c")], [300, ord("c")]),
        ([300, ord("c"), 0], [300, ord("c")]),  # with the end token
        ([10, 11, 12], [*map(ord, "abc")]),  # of another tokenizer
        ([300, ord("c"), 999_999], [*map(ord, "abc")]),
        ([-5], [*map(ord, "abc")]),
        ([10**30], [*map(ord, "abc")]),
        ([], [*map(ord, "abc")]),
    ],
)
def test_token_ids_of_the_server_are_used_where_they_are_of_our_tokenizer(sent, used):
    with serving(lambda body, number: completion("abc", token_ids=sent)) as (url, _):
        trajectory = HttpSampler(url, "tiny", Pairs(), end=0)(asking(1), Sampling())[0]
    assert trajectory.ids == [ord("F"), *used, 0]


def test_token_ids_end_at_a_stop_string():
    with serving(lambda body, number: completion("ab#x", token_ids=[300, ord("#"), ord("x")])) as (url, _):
        trajectory = HttpSampler(url, "tiny", Pairs(), end=0)(asking(1), Sampling(stop=("#",)))[0]
    assert trajectory.ids == [*map(ord, "Fab"), 0] and trajectory.finish == "stop"


@pytest.mark.parametrize("broken", [(503, b"busy"), (429, b""), (200, b"{not json")])
def test_errors_that_may_pass_are_retried(broken):
    with serving(lambda body, number: broken if number < 3 else completion("fine")) as (url, asked):
        trajectory = HttpSampler(url, "tiny", Letters(), wait=0.01)(asking(1), Sampling())[0]
    assert trajectory.finish == "stop" and len(asked) == 3


@pytest.mark.parametrize(
    ("reply", "calls", "reason"),
    [
        ((503, b""), 3, "503"),
        ((400, b"no such field"), 1, "400 Bad Request: no such field"),
        ((200, b'{"choices": []}'), 1, "not a completion"),
        ((200, b'{"choices": [{"text": null}]}'), 1, "not a completion"),
        ((200, b"[]"), 1, "not a completion"),
    ],
)
def test_a_permanent_failure_is_an_error_of_that_request_alone(reply, calls, reason):
    with serving(lambda body, n: reply if "ask 1" in body["prompt"] else completion("fine")) as (url, asked):
        trajectories = HttpSampler(url, "tiny", Letters(), retries=2, wait=0.01)(asking(3), Sampling())
    assert [t.finish for t in trajectories] == ["stop", "error", "stop"]
    assert trajectories[1].ids == [ord("F")] and reason in trajectories[1].request.metadata["error"]
    assert sum("ask 1" in request["prompt"] for request in asked) == calls
    assert trajectories[1].request.metadata["refused"] is (calls == 1)


def test_a_server_that_hangs_or_is_down_is_an_error():
    release = threading.Event()

    def answer(body, number):
        release.wait(10)
        return completion("late")

    with serving(answer) as (url, asked):
        start = time.perf_counter()
        trajectory = HttpSampler(url, "tiny", Letters(), retries=1, wait=0.01, limit=0.2)(asking(1), Sampling())[0]
        assert trajectory.finish == "error" and 0.4 <= time.perf_counter() - start < 5 and len(asked) == 2
        release.set()
    assert HttpSampler(url, "tiny", Letters(), retries=0)(asking(1), Sampling())[0].finish == "error"


def test_a_repeated_round_is_read_from_the_journal(tmp_path):
    journal = tmp_path / "replies.jsonl"

    def answer(body, number):
        return (500, b"") if "ask 2" in body["prompt"] and number <= 3 else completion(f"reply {number}")

    with serving(answer) as (url, asked):
        sampler = HttpSampler(url, "tiny", Letters(), retries=0, journal=journal)
        first = sampler(asking(3), Sampling())
        assert [t.finish for t in first] == ["stop", "stop", "error"]
        again = sampler(asking(3), Sampling())
        assert [t.ids for t in again[:2]] == [t.ids for t in first[:2]] and again[2].finish == "stop"
        assert len(asked) == 4  # only what failed was asked again
        journal.write_text(journal.read_text(encoding="utf-8")[:-20], encoding="utf-8")
        assert [t.ids for t in sampler(asking(2), Sampling())] == [t.ids for t in first[:2]] and len(asked) == 4
        sampler(asking(1), Sampling(temperature=0.5))
        assert len(asked) == 5


class Opened(Letters):
    """Puts a token before every text by itself, as many tokenizers do."""

    def __call__(self, text, add_special_tokens=True, **options):
        return {"input_ids": [*([ord("^")] if add_special_tokens else []), *map(ord, text)]}


def test_tokens_that_the_servers_tokenizer_adds_are_not_sent_twice():
    with serving(lambda body, number: completion("x")) as (url, asked):
        sampler = HttpSampler(url, "tiny", Opened())
        trajectories = sampler([Request([*map(ord, "^^a")], "two"), Request([*map(ord, "a^")], "none")], Sampling())
    assert {request["prompt"] for request in asked} == {"^a", "a^"} and trajectories[0].ids == [ord("x")]


def test_an_answer_that_ended_gets_the_end_token_and_loses_what_follows_a_stop_string():
    replies = {"0": ("fine", "stop"), "1": ("cut o", "length"), "2": ("one#two", "stop"), "3": ("late#", "length")}
    with serving(lambda body, number: completion(*replies[body["prompt"][4]])) as (url, _):
        trajectories = HttpSampler(url, "tiny", Letters(), end=0)(asking(4), Sampling(stop=("##", "#")))
    assert [Letters().decode(trajectory.ids) for trajectory in trajectories] == [
        "Ffine\0",
        "Fcut o",
        "Fone\0",
        "Flate\0",
    ]
    assert [trajectory.finish for trajectory in trajectories] == ["stop", "length", "stop", "stop"]


def test_a_chat_model_is_sent_messages_and_further_fields():
    def answer(body, number):
        content = body["messages"][0]["content"].upper() if number < 3 else None
        return 200, json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}).encode()

    messages = [{"role": "user", "content": "hello"}]
    requests = [Request([1], f"r{i}", seed=i, metadata={"messages": messages}) for i in range(3)]
    with serving(answer) as (url, asked):
        sampler = HttpSampler(url, "tiny", Letters(), endpoint="chat", concurrency=1, extra={"top_k": 5})
        trajectories = sampler(requests, Sampling())
        with pytest.raises(ValueError, match="completions"):
            sampler(asking(1), Sampling())
    assert [Letters().decode(trajectory.ids) for trajectory in trajectories] == ["HELLO", "HELLO", ""]
    assert trajectories[2].finish == "error" and "not a completion" in trajectories[2].request.metadata["error"]
    assert all(request["path"] == "/v1/chat/completions" and request["top_k"] == 5 for request in asked)
    assert all("prompt" not in request for request in asked)


def test_when_no_server_listens_waiting_requests_are_not_sent():
    with serving(lambda body, number: completion("")) as (url, _):
        pass
    start = time.perf_counter()
    trajectories = HttpSampler(url, "tiny", Letters(), concurrency=1, retries=2, wait=0.1)(asking(50), Sampling())
    assert time.perf_counter() - start < 2  # the tries of one request, not of fifty: 0.3 s and not 15
    assert {trajectory.finish for trajectory in trajectories} == {"error"} and "refused" in trajectories[
        49
    ].request.metadata["error"]
    assert trajectories[49].request.metadata["refused"] is False


def test_an_interruption_waits_for_no_one():
    def stop(done):
        raise KeyboardInterrupt

    def answer(body, number):
        return completion("first") if number == 1 else (503, b"")

    with serving(answer) as (url, asked):
        sampler = HttpSampler(url, "tiny", Letters(), concurrency=2, wait=0.2, retries=6)
        start = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            sampler(asking(40), Sampling(), stop)
        assert time.perf_counter() - start < 2
        time.sleep(1)
        count = len(asked)
        time.sleep(1)
        assert count == len(asked) < 10  # what was under way gives up too


def test_reach_accepts_any_reply_but_a_refused_key():
    for status in (200, 404, 500):
        with serving(None, models=(status, b"")) as (url, _):
            HttpSampler(url, "tiny", Letters()).reach()
    with pytest.raises(RunError, match=f"No server answers at {url}: .*refused"):
        HttpSampler(url, "tiny", Letters()).reach()
    with serving(None, models=(401, b"")) as (url, _), pytest.raises(RunError, match="refuses the key"):
        HttpSampler(url, "tiny", Letters(), token="secret").reach()
