"""Generation by any OpenAI-compatible server (vLLM, SGLang, llama.cpp, `transformers serve`)."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from luthier.errors import RunError
from luthier.types import Request, Sampling, Trajectory

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
SHOWN = 300  # characters of a server's reason


class Unanswered(Exception):
    """A request got no completion; `refused`: the server said no, and will say so again."""

    def __init__(self, reason: str, refused: bool):
        super().__init__(reason)
        self.refused = refused


@dataclass
class HttpSampler:
    """Continues requests through a server's completions, or has a chat model answer them; a `Sampler`.

    `completions` sends the prompt as text (not every server takes ids), without the token that tokenizers put in
    front by themselves, as the server's will do so too. `chat` sends `messages` of the request's metadata, for the
    server to write in its own template. What comes back is text, unless the server names `token_ids`, cut at a stop
    string and tokenised here. Log-probabilities stay empty: a server may tell those of another temperature.

    A request that fails for good has finish "error", no tokens of its own, and in its metadata `error` and `refused`
    (false: it may succeed later). Once no connection is to be had, what waits is not tried. With a journal, a reply
    is kept under a key of all that was asked, and read back when that is asked again.

    Args:
        url: up to and including the version, such as `http://localhost:8000/v1`.
        model: the name the server knows.
        tokenizer: of the model that the answers are for.
        endpoint: see above; chat cannot go on behind forced tokens.
        end: token put behind an answer that ended by itself or at a stop string, as texts do not show it.
        extra: further fields of each request, as the server knows them.
        concurrency: requests at a time.
        retries: how often a refused or broken request is sent again.
        wait: seconds before the first repetition; doubled at each.
        limit: seconds one try may take; a server's queue counts.
        token: sent as a bearer token.
        journal: file of replies, one JSON line each.
    """

    url: str
    model: str
    tokenizer: Any
    endpoint: Literal["completions", "chat"] = "completions"
    end: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 8
    retries: int = 4
    wait: float = 0.5
    limit: float = 600.0
    token: str | None = field(default=None, repr=False)
    journal: Path | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _gone: str | None = field(default=None, repr=False)  # why nothing more is sent

    def __call__(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] | None = None
    ) -> list[Trajectory]:
        """One trajectory per request, in their order; nothing is raised for a reply that is missing or wrong."""
        if self.endpoint == "chat" and any(request.forced_ids for request in requests):
            raise ValueError("a chat model cannot go on behind given tokens; use the endpoint `completions`")
        known, self._gone = self._journalled(), None
        found: dict[int, Trajectory] = {}
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            jobs = {pool.submit(self._one, one, sampling, known): index for index, one in enumerate(requests)}
            for job in as_completed(jobs):
                found[jobs[job]] = job.result()
                if progress is not None:
                    progress(len(found))
        except BaseException:
            self._gone = "stopped"
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()
        return [found[index] for index in range(len(requests))]

    def reach(self) -> None:
        """Look whether the server is there; whatever it answers shows that, unless it asks who is calling.

        Raises:
            RunError: nothing answers, or the key is refused.
        """
        try:
            urllib.request.urlopen(self._call("models"), timeout=min(self.limit, 10.0)).close()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (401, 403):
                raise RunError(
                    f"The server at {self.url} refuses the key ({error.code}).",
                    "Name the variable that holds it: `api_key_env: NAME`.",
                ) from None
        except (OSError, ValueError) as error:
            raise RunError(
                f"No server answers at {self.url}: {_told(error)}.",
                f"Start it (`vllm serve {self.model}`, `transformers serve {self.model}`), or correct `url`.",
            ) from None

    def _one(self, request: Request, sampling: Sampling, known: dict[str, Any]) -> Trajectory:
        body = self._body(request, sampling)
        key = hashlib.blake2b(json.dumps([body, request.record], sort_keys=True).encode()).hexdigest()
        reply = known.get(key)
        if reply is None:
            try:
                reply = _choice(self._send(body), self.endpoint)
            except Unanswered as error:
                reason = {**request.metadata, "error": str(error), "refused": error.refused}
                return Trajectory([*request.forced_ids], "error", request.record, (), replace(request, metadata=reason))
            self._keep(key, reply)
        return self._trajectory(request, reply, sampling.stop)

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
        }
        if sampling.temperature > 0:
            body["seed"] = request.seed & 0x7FFFFFFF
        if self.endpoint == "chat":
            body["messages"] = request.metadata["messages"]
        else:
            body["prompt"] = self._text(request)
        if sampling.top_p < 1:
            body["top_p"] = sampling.top_p
        if sampling.min_p > 0:
            body["min_p"] = sampling.min_p
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        return {**body, **self.extra}

    def _text(self, request: Request) -> str:
        """The prompt, without what the server's tokenizer puts in front of every text."""
        ids = [*request.prompt_ids, *request.forced_ids]
        own = ids[: len(self._opening)] == self._opening
        return self.tokenizer.decode(ids[len(self._opening) :] if own else ids, skip_special_tokens=False)

    @cached_property
    def _opening(self) -> list[int]:
        """The tokens that the tokenizer puts before a text by itself."""
        plain, full = (self.tokenizer("a", add_special_tokens=how)["input_ids"] for how in (False, True))
        length = len(plain)
        return next((list(full[:k]) for k in range(len(full)) if list(full[k : k + length]) == list(plain)), [])

    def _call(self, place: str, body: dict[str, Any] | None = None) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        content = None if body is None else json.dumps(body).encode()
        return urllib.request.Request(f"{self.url.rstrip('/')}/{place}", content, headers)

    def _send(self, body: dict[str, Any]) -> Any:
        """The server's answer, asked again while that may help.

        Raises:
            Unanswered: no connection, no answer in time, a status that says no, or no JSON.
        """
        call = self._call("chat/completions" if self.endpoint == "chat" else "completions", body)
        for attempt in range(self.retries + 1):
            if self._gone is not None:
                raise Unanswered(self._gone, refused=False)
            try:
                with urllib.request.urlopen(call, timeout=self.limit) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                with error:
                    reason = f"{error.code} {error.reason}: {error.read().decode(errors='replace')[:SHOWN]}"
                failed = Unanswered(reason, refused=error.code not in AGAIN)
            except (OSError, ValueError) as error:
                failed = Unanswered(_told(error), refused=False)
                if attempt == self.retries and _no_connection(error):
                    self._gone = str(failed)
            if failed.refused or attempt == self.retries:
                raise failed
            time.sleep(self.wait * 2**attempt)
        raise AssertionError

    def _trajectory(self, request: Request, reply: dict[str, Any], stop: Sequence[str]) -> Trajectory:
        own, finish = reply["token_ids"], reply["finish"]
        if own is None:
            text = reply["text"]
            places = [place for one in stop if (place := text.find(one)) >= 0]
            finish = "stop" if places else finish
            text = text[: min(places, default=len(text))]
            own = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            if finish == "stop" and self.end is not None:
                own = [*own, self.end]
        return Trajectory([*request.forced_ids, *own], finish, request.record, (), request)

    def _journalled(self) -> dict[str, Any]:
        if self.journal is None or not self.journal.exists():
            return {}
        found = {}
        for line in self.journal.read_text(encoding="utf-8").splitlines():
            try:
                kept = json.loads(line)
            except ValueError:  # a line cut off by the end of a process: its request is sent again
                continue
            found[kept["key"]] = kept["reply"]
        return found

    def _keep(self, key: str, reply: dict[str, Any]) -> None:
        if self.journal is None:
            return
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, self.journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "reply": reply}) + "\n")


def _choice(answer: Any, endpoint: str) -> dict[str, Any]:
    """What is kept of an answer: text, token ids if it names them, and how it ended.

    Raises:
        Unanswered: it is not a completion.
    """
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"] if endpoint == "chat" else choice["text"]
        ids = choice.get("token_ids")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Unanswered(f"not a completion: {str(answer)[:SHOWN]}", refused=True) from None
    if not isinstance(text, str) or not (ids is None or (isinstance(ids, list) and all(type(i) is int for i in ids))):
        raise Unanswered(f"not a completion: {str(answer)[:SHOWN]}", refused=True)
    finish: Literal["stop", "length"] = "length" if choice.get("finish_reason") == "length" else "stop"
    return {"text": text, "token_ids": ids, "finish": finish}


def _told(error: Exception) -> str:
    """What was wrong, in the words of the innermost error."""
    reason = getattr(error, "reason", error)
    return str(reason) or type(reason).__name__


def _no_connection(error: Exception) -> bool:
    """Nobody listens, which is the same for every request; slow or garbled answers are not."""
    reason = getattr(error, "reason", error)
    return isinstance(reason, OSError) and not isinstance(reason, TimeoutError)
