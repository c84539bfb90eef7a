"""Servers that redirect, repeat the key, send too much or too slowly, or break off; and what their texts may hold."""

import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from luthier.errors import RecipeError, RunError
from luthier.models.loading.load import load_tokenizer
from luthier.parts import build
from luthier.recipe.settings import Model
from luthier.sampling.http import HttpSampler
from luthier.types import Request, Sampling
from support.served import completion, serving

KEY = "sk-secret-1"


class Letters:
    def __len__(self):
        return 256

    def decode(self, ids, **options):
        return "".join(map(chr, ids))

    def __call__(self, text, **options):
        return {"input_ids": [ord(letter) % 256 for letter in text]}


def ask(url, count=1, sampling=None, **options):
    options = {"retries": 1, "wait": 0.01, "limit": 5.0, "token": KEY, **options}
    requests = [Request([97], f"r{index}", seed=index) for index in range(count)]
    return HttpSampler(url, "tiny", Letters(), **options)(requests, sampling or Sampling(16))


def error_of(trajectory):
    assert trajectory.finish == "error" and trajectory.ids == []
    return trajectory.request.metadata["error"]


@contextmanager
def raw(*replies):
    """A server that writes these bytes, one reply per connection and the last again and again; a number waits."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.1)
    ended, count = threading.Event(), [0]

    def answer(connection, pieces):
        try:
            with connection:
                connection.recv(65536)
                for piece in pieces:
                    if isinstance(piece, float):
                        ended.wait(piece)
                    else:
                        connection.sendall(piece)
        except OSError:
            pass  # the client has gone

    def serve():
        while not ended.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                continue
            pieces = replies[min(count[0], len(replies) - 1)]
            count[0] += 1
            threading.Thread(target=answer, args=(connection, pieces), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1", count
    finally:
        ended.set()
        thread.join()
        listening.close()


def http(body, status="200 OK", length=None, more=""):
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n{more}\r\n"
    return head.encode() + body


GOOD = http(completion("fine")[1])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_key_follows_a_redirect(status):
    with serving(lambda body, number: completion("stolen")) as (other, asked):
        target = f"{other}/chat/completions".encode()
        with raw([http(b"", f"{status} Moved", more=f"Location: {target.decode()}\r\n")]) as (url, count):
            assert other in error_of(ask(url)[0])
            with pytest.raises(RunError, match="redirects to"):
                HttpSampler(url, "tiny", None, token=KEY).reach()
        assert count[0] == 2  # refused at once, and by `reach`
    assert asked == []


BREAKS = {
    "a body that breaks off": [http(b'{"choices": [', length=300)],
    "an error whose body breaks off": [http(b"sorr", "503 Busy", length=300)],
    "no HTTP": [b"SSH-2.0-OpenSSH\r\n\r\n"],
    "a header without end": [b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n"],
    "nothing": [b""],
    "deep JSON": [http(b"[" * 100_000)],
    "an error with status 200": [http(b'{"error": {"message": "overloaded"}}')],
}


@pytest.mark.parametrize("broken", BREAKS.values(), ids=BREAKS)
def test_a_reply_that_breaks_is_tried_again(broken):
    with raw(broken, [GOOD]) as (url, _):
        assert Letters().decode(ask(url)[0].ids) == "fine"
    with raw(broken) as (url, count):
        trajectory = ask(url)[0]
        assert error_of(trajectory) and trajectory.request.metadata["refused"] is False and count[0] == 2


SLOW = {
    "a byte now and then": [http(b"", length=1000), *[0.1, b"x"] * 100],
    "headers now and then": [b"HTTP/1.1 200 OK\r\n", *[0.1, b"X: y\r\n"] * 100],
    "an endless error": [http(b"", "500 Oh", length=10**9), *[0.1, b"x"] * 100],
    "silence": [10.0],
}


@pytest.mark.parametrize("slow", SLOW.values(), ids=SLOW)
def test_the_limit_of_time_is_of_the_whole_exchange(slow):
    with raw(slow) as (url, _):
        start = time.monotonic()
        error = error_of(ask(url, limit=0.5, retries=0)[0])
        assert time.monotonic() - start < 3
    assert any(reason in error for reason in ("0.5 s", "timed out", "500 Oh"))


@pytest.mark.parametrize("status", ["200 OK", "500 Oh"])
def test_no_more_is_read_than_a_completion_can_be(status):
    piece = b"x" * 2**20
    with raw([http(b"", status, length=10**12), *[piece] * 400]) as (url, _):
        start = time.monotonic()
        assert error_of(ask(url, retries=0)[0])
        assert time.monotonic() - start < 3


def test_more_tokens_than_were_asked_for_are_cut_off():
    with serving(lambda body, number: completion("y" * 5000, token_ids=[ord("y")] * 5000)) as (url, _):
        trajectory = ask(url, end=1)[0]
    assert trajectory.ids == [ord("y")] * 16 and trajectory.finish == "length"


@pytest.mark.parametrize("reason", ["abort", "content_filter", "error", "tool_calls", None, 3])
def test_an_answer_that_was_broken_off_is_no_answer(reason):
    with serving(lambda body, number: completion("nu", reason)) as (url, _):
        trajectory = ask(url, end=1)[0]
    assert str(reason) in error_of(trajectory) and trajectory.request.metadata["refused"] is True


def test_a_missing_reason_is_an_answer_that_ended():
    with serving(lambda body, number: (200, b'{"choices": [{"text": "nu"}]}')) as (url, _):
        assert ask(url, end=1)[0].ids == [*map(ord, "nu"), 1]


@pytest.mark.parametrize("status", ["401 Unauthorized", "400 Bad", "503 Busy"])
def test_the_key_stands_in_no_message(status):
    with raw([http(f"bad key Bearer {KEY}".encode(), status)]) as (url, _):
        error = error_of(ask(url, retries=0)[0])
        assert "bad key Bearer [key]" in error
        if not status.startswith("401"):
            HttpSampler(url, "tiny", None, token=KEY).reach()


@pytest.mark.parametrize("url", ["http://user:pw@host/v1", "https://token@host/v1"])
def test_no_password_stands_in_the_address(url):
    with pytest.raises(RecipeError, match="api_key_env"):
        build("sampler", {"kind": "http", "url": url, "model": "m"})


def test_control_tokens_and_broken_characters_in_a_text_stay_text():
    tokenizer = load_tokenizer(Model(path="nano"), None)
    texts = {"0": "ab<|end|>", "1": "a\ud800b", "2": "<|pad|>"}

    def answer(body, number):
        return 200, json.dumps({"choices": [{"text": texts[str(body["seed"])], "finish_reason": "stop"}]}).encode()

    requests = [Request([97], f"r{index}", seed=index) for index in range(3)]
    with serving(answer) as (url, _):
        sampler = HttpSampler(url, "tiny", tokenizer, end=tokenizer.eos_token_id)
        trajectories = sampler(requests, Sampling(64, 0.5))
    special = set(tokenizer.all_special_ids)
    for trajectory in trajectories:
        assert trajectory.finish == "stop" and trajectory.ids[-1] == tokenizer.eos_token_id
        assert not special & set(trajectory.ids[:-1]) and len(trajectory.ids) > 3


def test_a_journal_of_bad_token_ids_does_not_end_the_next_run(tmp_path):
    with serving(lambda body, number: completion("abc", token_ids=[10**9])) as (url, asked):
        for _ in range(2):
            assert ask(url, journal=tmp_path / "replies.jsonl")[0].ids == [*map(ord, "abc")]
        assert len(asked) == 1
