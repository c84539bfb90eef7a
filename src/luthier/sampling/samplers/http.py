"""Http: a model behind an OpenAI-compatible server answers, such as a stronger one to learn from."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from luthier.errors import RunError
from luthier.sampling.http import HttpSampler
from luthier.sampling.samplers.base import Asking, SamplerPart
from luthier.types import Sampler


class Http(SamplerPart):
    """A model behind an OpenAI-compatible server (vLLM, SGLang, llama.cpp, `transformers serve`) answers.

    `chat` sends the record's messages, and the server applies its model's own template. `completions` sends the
    prompt in the template of the recipe's model: for a server of that same model, or of one without a template.
    Answers come as text and are tokenised for the recipe's model; an answer that ended by itself gets that model's end
    token. `extra` holds further fields of each request, as the server names them. The key is read from the environment
    variable that `api_key_env` names.
    """

    SETTINGS: ClassVar = ({"url": "http://127.0.0.1:9/v1", "model": "none"},)

    url: str = Field(
        pattern=r"^https?://",
        description="Address of the server up to and including the version, such as http://127.0.0.1:8000/v1.",
    )
    model: str = Field(description="The server's name of the model that answers.")
    endpoint: Literal["chat", "completions"] = Field(
        "chat",
        description="`chat` sends messages, and the server applies its model's template; `completions` sends the "
        "prompt in the template of the recipe's model.",
    )
    api_key_env: str | None = Field(
        None,
        description="Environment variable that holds the server's key; a recipe never contains the key itself. Null "
        "sends none.",
    )
    concurrency: int = Field(
        8,
        ge=1,
        description="Requests in flight at a time. More is faster up to what the server serves at once.",
    )
    retries: int = Field(
        4,
        ge=0,
        description="Times that a request is sent again after an error that may pass, after 0.5 s and then twice as "
        "long each time.",
    )
    limit: float = Field(
        600.0,
        gt=0,
        description="Seconds that one try may take, the server's queue included. Raise it for long answers or a busy "
        "server.",
    )
    extra: dict[str, Any] = Field(
        default_factory=dict,
        description="Further fields of each request, as the server names them, such as `{repetition_penalty: 1.1}`.",
    )

    @field_validator("url")
    @classmethod
    def _no_user(cls, url: str) -> str:
        # A password in the address would stand in the lock, in run.json and in every message.
        if "@" in urlsplit(url).netloc:
            raise ValueError("the address holds a user name or password; name a variable instead: `api_key_env: NAME`")
        return url

    def make(self, asking: Asking) -> Sampler:
        return self._client(
            asking.tokenizer,
            end=asking.end,
            journal=None if asking.folder is None else asking.folder / "replies.jsonl",
        )

    def reach(self) -> None:
        """Check that the server can be reached.

        Raises:
            RunError: no server answers, or the key is missing or refused.
        """
        self._client(None).reach()

    def _client(self, tokenizer: Any, **more: Any) -> HttpSampler:
        return HttpSampler(
            self.url,
            self.model,
            tokenizer,
            self.endpoint,
            extra=self.extra,
            concurrency=self.concurrency,
            retries=self.retries,
            limit=self.limit,
            token=self._key(),
            **more,
        )

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        if not os.environ.get(self.api_key_env):
            raise RunError(
                f"The environment variable {self.api_key_env}, which should hold the key for {self.url}, is not set.",
                f"export {self.api_key_env}=...",
            )
        return os.environ[self.api_key_env]
