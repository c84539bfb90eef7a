"""The form in which a chat template wants tool calls and thoughts: found by trying, on a small conversation.

Templates differ: arguments as an object or as JSON text, thoughts under one of three keys, None or "" as the content
beside calls, ids of nine letters, a name on each tool's answer. No template says what it wants.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import Any

from luthier.chat.spans import NAMED, RENUMBERED
from luthier.errors import DataError

Write = Callable[[list[dict[str, Any]], Any], str]
"""Renders messages with tools; raises DataError where the template refuses them."""

THOUGHTS = ("reasoning_content", "thinking", "reasoning")
CALLED, KEY, WORD, THOUGHT = "zqcalled", "zqkey", "zqword", "ZQTHOUGHTQZ"
SCHEMA = {"type": "object", "properties": {KEY: {"type": "string", "description": "A word."}}, "required": [KEY]}
TOOLS = [{"type": "function", "function": {"name": CALLED, "description": "Reads a word.", "parameters": SCHEMA}}]
QUESTION = {"role": "user", "content": "Hello."}
BAD = re.compile(rf"\\+\"{KEY}|\{{'{KEY}")
"""JSON within JSON, or Python's form of a mapping: no program that reads calls would understand it."""


class TemplateForms:
    """Brings canonical messages into the form that a template wants.

    Args:
        write: renders messages with tools through the template, and raises DataError if it refuses them.
    """

    def __init__(self, write: Write):
        self.write = write

    def conversation(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
        """The messages in the template's form, and notes on what was changed.

        Raises:
            DataError: the template writes arguments of tool calls in no readable form.
        """
        if not any(message.get("tool_calls") or message.get("reasoning_content") for message in messages):
            return [dict(message) for message in messages], []
        formed = [self._message(message) for message in messages]
        return formed, [*self._number(formed), *self._name(formed)]

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        formed = dict(message)
        if formed.get("reasoning_content"):
            formed[self.thoughts] = formed.pop("reasoning_content")
        if calls := formed.get("tool_calls"):
            as_text, empty = self.calls
            formed["tool_calls"] = [_with_arguments(call, as_text) for call in calls]
            formed["content"] = formed.get("content") or empty
        return formed

    @cached_property
    def thoughts(self) -> str:
        """The key under which the template reads thoughts; the first of THOUGHTS if it reads none."""
        for name in THOUGHTS:
            thoughtful = {"role": "assistant", "content": "Yes.", name: THOUGHT}
            if THOUGHT in self._tried([QUESTION, thoughtful], None):
                return name
        as_text, empty = self.calls
        for name in THOUGHTS:
            if THOUGHT in self._tried(_talk(as_text, empty, {name: THOUGHT}), TOOLS):
                return name
        return THOUGHTS[0]

    @cached_property
    def calls(self) -> tuple[bool, str | None]:
        """Whether arguments are JSON text (not an object), and the content beside calls without text.

        Raises:
            DataError: the template writes arguments in no readable form.
        """
        texts = {form: self._tried(_talk(*form), TOOLS) for form in product((False, True), (None, ""))}
        readable, bad = [], []
        for (as_text, empty), text in texts.items():
            # None as content is written as a word by templates that do not expect it.
            worded = text.count("None") > texts[as_text, ""].count("None") and texts[as_text, ""]
            if text and not worded:
                (bad if BAD.search(text) else readable).append((as_text, empty))
        calling = [form for form in readable if WORD in texts[form]]
        if not calling and bad:
            raise DataError(
                "the chat template writes the arguments of tool calls in a form that no program could read back.",
                "Use a tokenizer whose template writes them as JSON, or one with a format of its own.",
            )
        # A template that knows no tools leaves calls out, in any form that it accepts.
        return (calling or readable or [(False, "")])[0]

    @cached_property
    def short_ids(self) -> bool:
        """Whether the template refuses ids of calls that are not nine letters and digits."""
        talk = _talk(*self.calls)
        others = _talk(*self.calls, name="call_zq_10")
        return bool(self._tried(talk, TOOLS)) and not self._tried(others, TOOLS)

    @cached_property
    def names(self) -> bool:
        """Whether the template writes the name of a tool's answer."""
        talk = _talk(*self.calls)
        nameless = [{key: entry for key, entry in message.items() if key != "name"} for message in talk]
        return self._tried(talk, TOOLS) != self._tried(nameless, TOOLS)

    def _number(self, messages: list[dict[str, Any]]) -> list[str]:
        """Number the calls where the template refuses one of their ids."""
        ids = [*_ids(messages)]
        fit = all(isinstance(name, str) and re.fullmatch("[A-Za-z0-9]{9}", name) for name in ids)
        if fit or not self.short_ids:
            return []
        waiting: list[tuple[Any, str]] = []
        count = 0
        for message in messages:
            for index, call in enumerate(message.get("tool_calls") or []):
                count += 1
                waiting.append((call.get("id"), f"call{count:05d}"))
                message["tool_calls"][index] = {**call, "id": waiting[-1][1]}
            if message["role"] == "tool" and waiting:
                message["tool_call_id"] = waiting.pop(_answered(message, waiting))[1]
        return [RENUMBERED]

    def _name(self, messages: list[dict[str, Any]]) -> list[str]:
        """Name the answers of tools after the calls that they answer, where the template writes names."""
        nameless = [message for message in messages if message["role"] == "tool" and not message.get("name")]
        if not nameless or not self.names:
            return []
        waiting: list[tuple[Any, str]] = []
        for message in messages:
            for call in message.get("tool_calls") or []:
                waiting.append((call.get("id"), call["function"]["name"]))
            if message["role"] == "tool" and waiting:
                name = waiting.pop(_answered(message, waiting))[1]
                message["name"] = message.get("name") or name
        return [NAMED]

    def _tried(self, messages: list[dict[str, Any]], tools: Any) -> str:
        """The text of a conversation; empty if the template refuses it."""
        try:
            return self.write(messages, tools)
        except DataError:
            return ""


def _answered(message: Mapping[str, Any], waiting: Sequence[tuple[Any, str]]) -> int:
    """Index of the call that a tool's answer belongs to: by its id, else the first that waits."""
    ids = [name for name, _ in waiting]
    name = message.get("tool_call_id")
    return ids.index(name) if name is not None and name in ids else 0


def _ids(messages: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    for message in messages:
        for call in message.get("tool_calls") or []:
            yield call.get("id")
        if message["role"] == "tool":
            yield message.get("tool_call_id")


def read_arguments(arguments: Any) -> Any:
    """Arguments written as JSON text, read; any others as they are."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _with_arguments(call: Mapping[str, Any], as_text: bool) -> dict[str, Any]:
    function = dict(call.get("function") or call)
    arguments = function.get("arguments")
    if isinstance(arguments, str) and not as_text:
        arguments = read_arguments(arguments)
    elif not isinstance(arguments, str) and as_text:
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {"type": "function", **call, "function": {**function, "arguments": arguments}}


def _talk(
    as_text: bool, empty: str | None, more: Mapping[str, Any] | None = None, name: str = "call00001"
) -> list[dict[str, Any]]:
    call = {"type": "function", "id": name, "function": {"name": CALLED, "arguments": {KEY: WORD}}}
    calling = {"role": "assistant", "content": empty, "tool_calls": [_with_arguments(call, as_text)], **(more or {})}
    replied = {"role": "tool", "tool_call_id": name, "name": CALLED, "content": "Good."}
    return [QUESTION, calling, replied, {"role": "assistant", "content": "Yes."}]
