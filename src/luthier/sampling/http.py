"""Generation by any OpenAI-compatible server (vLLM, SGLang, llama.cpp, `transformers serve`)."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from luthier.errors import RunError
from luthier.sampling._transport import ErrorStatus, Redirected, TimedOut, TooLong, exchange
from luthier.sampling.stops import first_stop
from luthier.types import Request, Sampling, Trajectory

RETRIABLE = (408, 409, 425, 429, 500, 502, 503, 504)  # statuses after which the same request may succeed
REASON_LENGTH = 300  # characters of a server's message that are kept
REPLY_BYTES, TOKEN_BYTES = 2**20, 2**10  # of a reply: its frame, and each new token with what a server says about it
ENDED = ("stop", "eos_token", "stop_sequence")  # reasons of an answer that is complete; the last two are of TGI
HIDDEN = "[key]"


class NoCompletion(Exception):
    """A request got no completion; `refused`: the server rejected it, and would reject it again."""

    def __init__(self, reason: str, refused: bool):
        super().__init__(reason)
        self.refused = refused


@dataclass
class HttpSampler:
    """A `Sampler`: an OpenAI-compatible server continues the requests, or its chat model answers them.

    `completions` sends the prompt as text (not every server takes ids), without the tokens that a tokenizer adds at
    the front, since the server's tokenizer adds them again. `chat` sends `messages` of the request's metadata. A reply
    is text, cut at a stop string and tokenised here; `token_ids` of the server are used if they decode to that text.
    More than `max_new_tokens` of our tokens are cut off (finish "length"). Log-probabilities stay empty: a server may
    compute them at another temperature.

    A failed request has finish "error", only the forced tokens, and `error` and `refused` in its metadata (`refused`
    False: it may succeed later). After a failed connection, waiting requests are not sent. The journal stores each
    reply under a hash of its request; a repeated request gets the reply of the journal.

    Args:
        url: up to and including the version, such as `http://localhost:8000/v1`.
        model: the server's name of the model.
        tokenizer: of the model that the answers are for.
        endpoint: see above; `chat` cannot continue forced tokens.
        end: token appended to an answer that ended by itself or at a stop string, since texts do not contain it.
        extra: further fields of each request, as the server names them.
        concurrency, retries: requests at a time, and how often a failed request is sent again.
        wait, limit: seconds before the first repetition (doubled each time), and for one try, queue included.
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
    _stopped: str | None = field(default=None, repr=False)  # why no further request is sent

    def __call__(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] | None = None
    ) -> list[Trajectory]:
        """One trajectory per request, in their order. A missing or wrong reply raises nothing: see `finish`.

        Raises:
            ValueError: a request has forced tokens, and the endpoint is `chat`.
        """
        if self.endpoint == "chat" and any(request.forced_ids for request in requests):
            raise ValueError("a chat model cannot continue forced tokens; use the endpoint `completions`")
        replies, self._stopped = self._read_journal(), None
        trajectories: dict[int, Trajectory] = {}
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            jobs: dict[Future[Trajectory], int] = {}
            for index, request in enumerate(requests):
                jobs[pool.submit(self._continue, request, sampling, replies)] = index
            for job in as_completed(jobs):
                trajectories[jobs[job]] = job.result()
                if progress is not None:
                    progress(len(trajectories))
        except BaseException:
            # Ctrl-C does not wait for requests under way: they read `_stopped` and give up before their next try.
            self._stopped = "stopped"
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()
        return [trajectories[index] for index in range(len(requests))]

    def reach(self) -> None:
        """Check that the server can be reached. Any reply shows that it can, except a refused key.

        Raises:
            RunError: no server answers, or it refuses the key.
        """
        try:
            exchange(self._call("models"), min(self.limit, 10.0), REPLY_BYTES)
        except TooLong:
            pass  # a long list of models is a reply too
        except Redirected as error:
            raise RunError(
                f"The server at {self.url} answers {self._without_key(str(error))}.",
                "Luthier follows no redirect, since the other server would get the key. Correct `url`.",
            ) from None
        except ErrorStatus as error:
            if error.code in (401, 403):
                raise RunError(
                    f"The server at {self.url} refuses the key ({error.code}).",
                    "Name the variable that holds the key: `api_key_env: NAME`.",
                ) from None
        except (OSError, ValueError, TimedOut, http.client.HTTPException) as error:
            raise RunError(
                f"No server answers at {self.url}: {self._without_key(_describe_error(error))}.",
                f"Start it (`vllm serve {self.model}`, `transformers serve {self.model}`), or correct `url`.",
            ) from None

    def _continue(self, request: Request, sampling: Sampling, replies: dict[str, Any]) -> Trajectory:
        """The trajectory of one request, from the journal's `replies` or from the server."""
        body = self._body(request, sampling)
        # With the record: records of equal text and seed get a reply each, as they do without a journal.
        key = hashlib.blake2b(json.dumps([body, request.record], sort_keys=True).encode()).hexdigest()
        reply = replies.get(key)
        if reply is None:
            try:
                reply = _choice(self._send(body, sampling.max_new_tokens), self.endpoint)
            except NoCompletion as error:
                reason = self._without_key(str(error))
                metadata = {**request.metadata, "error": reason, "refused": error.refused}
                failed = replace(request, metadata=metadata)
                return Trajectory([*request.forced_ids], "error", request.record, (), failed)
            self._append_to_journal(key, reply)
        return self._trajectory(request, reply, sampling)

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        """The JSON fields of a request; those at their default are left out, since not every server knows them."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
        }
        if sampling.temperature > 0:
            body["seed"] = request.seed & 0x7FFFFFFF  # never negative, also where a server reads 32 bits
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
        """The prompt without the tokens that the server's tokenizer adds at the front of every text."""
        ids = [*request.prompt_ids, *request.forced_ids]
        if ids[: len(self._opening)] == self._opening:
            ids = ids[len(self._opening) :]
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    @cached_property
    def _opening(self) -> list[int]:
        """The tokens that the tokenizer adds at the front of a text, such as BOS."""
        bare = list(self.tokenizer("a", add_special_tokens=False)["input_ids"])
        full = list(self.tokenizer("a", add_special_tokens=True)["input_ids"])
        # By search, since a tokenizer may also add tokens at the end.
        for start in range(len(full)):
            if full[start : start + len(bare)] == bare:
                return full[:start]
        return []

    def _call(self, path: str, body: dict[str, Any] | None = None) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        content = None if body is None else json.dumps(body).encode()
        return urllib.request.Request(f"{self.url.rstrip('/')}/{path}", content, headers)

    def _send(self, body: dict[str, Any], new_tokens: int) -> Any:
        """The server's response as parsed JSON; the request is repeated while that may help.

        Raises:
            NoCompletion: no connection, no response in time, an error status, a redirect, or no JSON.
        """
        call = self._call("chat/completions" if self.endpoint == "chat" else "completions", body)
        for attempt in range(self.retries + 1):
            if self._stopped is not None:
                raise NoCompletion(self._stopped, refused=False)
            try:
                response = json.loads(exchange(call, self.limit, REPLY_BYTES + TOKEN_BYTES * new_tokens))
                if not isinstance(response, dict) or "error" not in response or response.get("choices"):
                    return response
                # Some servers report an error of theirs with status 200.
                failure = NoCompletion(f"an error: {str(response['error'])[:REASON_LENGTH]}", refused=False)
            except (Redirected, TooLong) as error:
                failure = NoCompletion(str(error), refused=True)
            except ErrorStatus as error:
                failure = NoCompletion(str(error)[:REASON_LENGTH], refused=error.code not in RETRIABLE)
            except (OSError, ValueError, RecursionError, TimedOut, http.client.HTTPException) as error:
                failure = NoCompletion(_describe_error(error), refused=False)
                # Otherwise every waiting request would spend its own retries on a server that is down.
                if attempt == self.retries and _no_connection(error):
                    self._stopped = str(failure)
            if failure.refused or attempt == self.retries:
                raise failure
            time.sleep(self.wait * 2**attempt)
        raise AssertionError

    def _trajectory(self, request: Request, reply: dict[str, Any], sampling: Sampling) -> Trajectory:
        # A server may include the stop string in the text, or generate on behind one that it does not know.
        stop_index = first_stop(reply["text"], sampling.stop)
        finish = reply["finish"] if stop_index is None else "stop"
        sampled = self._ids(reply["text"][:stop_index], reply["token_ids"])
        if len(sampled) > sampling.max_new_tokens:
            sampled, finish = sampled[: sampling.max_new_tokens], "length"
        if finish == "stop" and self.end is not None:
            sampled = [*sampled, self.end]
        return Trajectory([*request.forced_ids, *sampled], finish, request.record, (), request)

    def _ids(self, text: str, sent: list[int] | None) -> list[int]:
        """The tokens of a text, without the one that ends an answer: the server's, if they are of our tokenizer."""
        if sent and sent[-1] == self.end:
            sent = sent[:-1]
        known = sent is not None and all(0 <= token < len(self.tokenizer) for token in sent)
        if sent and known and self.tokenizer.decode(sent, skip_special_tokens=False) == text:
            return sent
        # The text of a control token is text here: tokenised as the token, it would open a turn of its own.
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _without_key(self, text: str) -> str:
        """A server's message, which may repeat the header that it refuses."""
        return text.replace(self.token, HIDDEN) if self.token else text

    def _read_journal(self) -> dict[str, Any]:
        """The journal's replies, by the hash of their requests."""
        if self.journal is None or not self.journal.exists():
            return {}
        replies = {}
        for line in self.journal.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # the process ended while it wrote this line: its request is sent again
                continue
            replies[entry["key"]] = entry["reply"]
        return replies

    def _append_to_journal(self, key: str, reply: dict[str, Any]) -> None:
        if self.journal is None:
            return
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, self.journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "reply": reply}) + "\n")


def _choice(response: Any, endpoint: str) -> dict[str, Any]:
    """The first choice of a response: `text`, `token_ids` (None where the server sends none) and `finish`.

    Raises:
        NoCompletion: the response is not a completion, or the answer ended in another way than by itself, at a stop
            string or at the limit of tokens.
    """
    try:
        choice = response["choices"][0]
        text = choice["message"]["content"] if endpoint == "chat" else choice["text"]
        ids, reason = choice.get("token_ids"), choice.get("finish_reason", "stop")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise NoCompletion(f"not a completion: {str(response)[:REASON_LENGTH]}", refused=True) from None
    if reason not in (*ENDED, "length"):
        raise NoCompletion(f"the answer was not finished: finish_reason {str(reason)[:REASON_LENGTH]}", refused=True)
    valid_ids = ids is None or (isinstance(ids, list) and all(type(token) is int for token in ids))
    if not isinstance(text, str) or not valid_ids:
        raise NoCompletion(f"not a completion: {str(response)[:REASON_LENGTH]}", refused=True)
    # JSON may hold half of a surrogate pair, which no tokenizer reads.
    text = text.encode(errors="replace").decode()
    return {"text": text, "token_ids": ids, "finish": "length" if reason == "length" else "stop"}


def _describe_error(error: Exception) -> str:
    """The innermost error's message: urllib wraps the error of the operating system."""
    reason = getattr(error, "reason", error)
    return str(reason) or type(reason).__name__


def _no_connection(error: Exception) -> bool:
    """Whether no server listens, which holds for every request; a slow or broken reply concerns one request."""
    reason = getattr(error, "reason", error)
    return isinstance(reason, OSError) and not isinstance(reason, TimeoutError)
