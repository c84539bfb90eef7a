"""The HTTP sampler against a small server that answers, refuses, hangs and breaks."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from luthier.sampling.http import HttpSampler
from luthier.types import Request, Sampling


class Letters:
    """One token per character."""

    def decode(self, ids, **options):
        return "".join(map(chr, ids))

    def __call__(self, text, **options):
        return {"input_ids": [ord(letter) for letter in text]}


def completion(text, finish="stop", **more):
    return 200, json.dumps({"choices": [{"text": text, "finish_reason": finish, **more}]}).encode()


@contextmanager
def serving(answer):
    """A server whose `answer(body, number of the call)` is (status, bytes); yields its address and what was asked."""
    asked, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                asked.append({"path": self.path, "token": self.headers.get("Authorization"), **body})
                number = len(asked)
            status, content = answer(body, number)
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                pass  # the client gave up waiting

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def asking(count):
    return [Request([*map(ord, f"ask {i}: ")], f"r{i}", forced_ids=[ord("F")], seed=i) for i in range(count)]


def test_answers_come_in_order_and_side_by_side():
    barrier = threading.Barrier(4)  # passes only if four requests are under way at once

    def answer(body, number):
        barrier.wait(10)
        return completion(body["prompt"].upper(), "length" if "3" in body["prompt"] else "stop")

    seen = []
    with serving(answer) as (url, asked):
        sampler = HttpSampler(url, "tiny", Letters(), concurrency=4, token="secret")
        found = sampler(asking(8), Sampling(20, 0.5, top_p=0.9, min_p=0.1, stop=("#",)), seen.append)
    assert [Letters().decode(t.ids) for t in found] == [f"FASK {i}: F" for i in range(8)]
    assert [t.finish for t in found] == ["length" if i == 3 else "stop" for i in range(8)]
    assert [t.record for t in found] == [f"r{i}" for i in range(8)] and seen == [*range(1, 9)]
    assert {one["path"] for one in asked} == {"/v1/completions"} and {one["token"] for one in asked} == {
        "Bearer secret"
    }
    wanted = {"model": "tiny", "max_tokens": 20, "temperature": 0.5, "top_p": 0.9, "min_p": 0.1, "stop": ["#"]}
    assert all(wanted.items() <= one.items() for one in asked) and {one["seed"] for one in asked} == {*range(8)}


def test_ids_that_the_server_names_are_taken():
    with serving(lambda body, number: completion("ignored", token_ids=[5, 6])) as (url, _):
        assert HttpSampler(url, "tiny", Letters())(asking(1), Sampling())[0].ids == [ord("F"), 5, 6]


@pytest.mark.parametrize("broken", [(503, b"busy"), (429, b""), (200, b"{not json")])
def test_what_may_pass_is_asked_again(broken):
    with serving(lambda body, number: broken if number < 3 else completion("fine")) as (url, asked):
        found = HttpSampler(url, "tiny", Letters(), wait=0.01)(asking(1), Sampling())[0]
    assert found.finish == "stop" and len(asked) == 3


@pytest.mark.parametrize(
    ("reply", "calls", "reason"),
    [
        ((503, b""), 3, "503"),
        ((400, b"no such field"), 1, "400"),
        ((200, b'{"choices": []}'), 1, "not a completion"),
        ((200, b'{"choices": [{"text": null}]}'), 1, "not a completion"),
        ((200, b"[]"), 1, "not a completion"),
    ],
)
def test_what_does_not_pass_is_an_error_of_that_request_alone(reply, calls, reason):
    with serving(lambda body, n: reply if "ask 1" in body["prompt"] else completion("fine")) as (url, asked):
        found = HttpSampler(url, "tiny", Letters(), retries=2, wait=0.01)(asking(3), Sampling())
    assert [t.finish for t in found] == ["stop", "error", "stop"]
    assert found[1].ids == [ord("F")] and reason in found[1].request.metadata["error"]
    assert sum("ask 1" in one["prompt"] for one in asked) == calls


def test_a_server_that_hangs_or_is_not_there_is_an_error():
    release = threading.Event()

    def answer(body, number):
        release.wait(10)
        return completion("late")

    with serving(answer) as (url, asked):
        start = time.perf_counter()
        found = HttpSampler(url, "tiny", Letters(), retries=1, wait=0.01, limit=0.2)(asking(1), Sampling())[0]
        assert found.finish == "error" and 0.4 <= time.perf_counter() - start < 5 and len(asked) == 2
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
