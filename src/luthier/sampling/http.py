"""Generation by any OpenAI-compatible server (vLLM, SGLang, llama.cpp, `transformers serve`)."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from luthier.types import Request, Sampling, Trajectory

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)


@dataclass
class HttpSampler:
    """Continues requests through a server's `/completions`; a `Sampler`.

    Prompts are sent as text (not every server takes ids); what comes back is text too, unless the server names
    `token_ids`, and is tokenised here. A text that ends by itself gets no end token, and log-probabilities stay empty:
    a server may tell those of another temperature. A request that fails for good has finish "error" and no tokens of
    its own. With a journal, a reply is kept under a key of all that was asked, and read back when that is asked again.

    Args:
        url: up to and including the version, such as `http://localhost:8000/v1`.
        model: the name the server knows.
        tokenizer: of that model.
        concurrency: requests at a time.
        retries: how often a refused or broken request is sent again.
        wait: seconds before the first repetition; doubled at each.
        limit: seconds one try may take.
        token: sent as a bearer token.
        journal: file of replies, one JSON line each.
    """

    url: str
    model: str
    tokenizer: Any
    concurrency: int = 8
    retries: int = 4
    wait: float = 0.5
    limit: float = 120.0
    token: str | None = None
    journal: Path | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __call__(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] | None = None
    ) -> list[Trajectory]:
        """One trajectory per request, in their order; nothing is raised for a reply that is missing or wrong."""
        known = self._journalled()
        found: dict[int, Trajectory] = {}
        with ThreadPoolExecutor(self.concurrency) as pool:
            jobs = {pool.submit(self._one, one, sampling, known): index for index, one in enumerate(requests)}
            for job in as_completed(jobs):
                found[jobs[job]] = job.result()
                if progress is not None:
                    progress(len(found))
        return [found[index] for index in range(len(requests))]

    def _one(self, request: Request, sampling: Sampling, known: dict[str, Any]) -> Trajectory:
        body = self._body(request, sampling)
        key = hashlib.blake2b(json.dumps([self.url, body, request.record], sort_keys=True).encode()).hexdigest()
        reply = known.get(key)
        if reply is None:
            try:
                reply = _choice(self._send(body))
            except (OSError, ValueError) as error:
                reason = {**request.metadata, "error": f"{type(error).__name__}: {error}"}
                return _failed(request, reason)
            self._keep(key, reply)
        return self._trajectory(request, reply)

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": self.tokenizer.decode([*request.prompt_ids, *request.forced_ids], skip_special_tokens=False),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "seed": request.seed & 0x7FFFFFFF,
        }
        if sampling.top_p < 1:
            body["top_p"] = sampling.top_p
        if sampling.min_p > 0:
            body["min_p"] = sampling.min_p
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        return body

    def _send(self, body: dict[str, Any]) -> Any:
        """The server's answer, asked again while that may help.

        Raises:
            OSError: no connection, no answer in time, or a status that says no.
            ValueError: the answer is not JSON.
        """
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        call = urllib.request.Request(f"{self.url.rstrip('/')}/completions", json.dumps(body).encode(), headers)
        for attempt in range(self.retries + 1):
            try:
                with urllib.request.urlopen(call, timeout=self.limit) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                error.close()
                if error.code not in AGAIN or attempt == self.retries:
                    raise
            except (OSError, ValueError):
                if attempt == self.retries:
                    raise
            time.sleep(self.wait * 2**attempt)
        raise AssertionError

    def _trajectory(self, request: Request, reply: dict[str, Any]) -> Trajectory:
        own = reply["token_ids"]
        if own is None:
            own = self.tokenizer(reply["text"], add_special_tokens=False)["input_ids"]
        return Trajectory([*request.forced_ids, *own], reply["finish"], request.record, (), request)

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
        with self._lock, self.journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "reply": reply}) + "\n")


def _choice(answer: Any) -> dict[str, Any]:
    """What is kept of an answer: text, token ids if it names them, and how it ended.

    Raises:
        ValueError: it is not a completion.
    """
    try:
        choice = answer["choices"][0]
        text, ids = choice["text"], choice.get("token_ids")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError(f"not a completion: {str(answer)[:200]}") from None
    if not isinstance(text, str) or not (ids is None or (isinstance(ids, list) and all(type(i) is int for i in ids))):
        raise ValueError(f"not a completion: {str(answer)[:200]}")
    finish: Literal["stop", "length"] = "length" if choice.get("finish_reason") == "length" else "stop"
    return {"text": text, "token_ids": ids, "finish": finish}


def _failed(request: Request, metadata: dict[str, Any]) -> Trajectory:
    return Trajectory([*request.forced_ids], "error", request.record, (), replace(request, metadata=metadata))
