"""Http: a model behind an OpenAI-compatible server answers, such as a stronger one to learn from."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.errors import RunError
from luthier.sampling.http import HttpSampler
from luthier.sampling.samplers.base import Asking, SamplerPart
from luthier.types import Sampler


class Http(SamplerPart):
    """A model behind an OpenAI-compatible server (vLLM, SGLang, llama.cpp, `transformers serve`) answers.

    `chat` sends the record's messages, for the server to write in its model's own template. `completions` sends the
    prompt as the recipe's model reads it: for that same model, or one without a template. Answers come as text, are
    tokenised for the recipe's model, and end with its end token where they ended by themselves. `extra` holds further
    fields of each request, as the server knows them. The key is read from the variable named by `api_key_env`.
    """

    SETTINGS: ClassVar = ({"url": "http://127.0.0.1:9/v1", "model": "none"},)

    url: str = Field(pattern=r"^https?://", description="up to and including the version: http://127.0.0.1:8000/v1")
    model: str = Field(description="the name that the server knows")
    endpoint: Literal["chat", "completions"] = "chat"
    api_key_env: str | None = None
    concurrency: int = Field(8, ge=1, description="requests at a time")
    retries: int = Field(4, ge=0, description="after an error that may pass")
    limit: float = Field(600.0, gt=0, description="seconds for one try, the server's queue included")
    extra: dict[str, Any] = Field(default_factory=dict)

    def make(self, asking: Asking) -> Sampler:
        return self._client(
            asking.tokenizer,
            end=asking.end,
            journal=None if asking.folder is None else asking.folder / "replies.jsonl",
        )

    def reach(self) -> None:
        """Raise RunError where nothing answers, or the key is missing or refused."""
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
                f"The variable {self.api_key_env}, which should hold the key for {self.url}, is not set.",
                f"export {self.api_key_env}=...",
            )
        return os.environ[self.api_key_env]
