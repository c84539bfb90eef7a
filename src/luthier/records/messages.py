"""One form of a message, before any chat template: what people write is read as what it means, and counted.

A canonical message has `role` (system, user, assistant, tool, or a role of the user's own) and `content`, a text. An
assistant's may have `reasoning_content` (its thoughts), `tool_calls` (`{"type": "function", "function": {"name",
"arguments"}}`, the arguments an object) and `learn: False`, which marks it as context. `written_role` is the
user's name of a role, which some templates know better (see `roles.py`). Other keys stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from luthier.errors import DataError
from luthier.records.calls import read_calls
from luthier.records.conversion import Conversion, literal_in, short
from luthier.records.nulls import plain

Message = dict[str, Any]

ROLES = {
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatbot", "ai", "chatgpt", "bing", "bard"),
    "system": ("system",),
    "tool": (
        "tool",
        "observation",
        "function",
        "function_response",
        "function_result",
        "function_output",
        "tool_response",
        "tool_result",
        "tool_results",
        "tool_output",
        "ipython",
    ),
}
"""Role → how data sets name it (ShareGPT, OpenAI, GLM, Llama, Cohere, OpenAssistant), in any case."""
CALLING = ("function_call", "tool_call", "function_calls", "tool_calls")
"""Roles of turns in which the assistant calls a tool; their content is the call as JSON."""
DEVELOPER = "developer"
THOUGHTS = ("reasoning_content", "thinking", "reasoning", "thought", "thoughts")
TEXT_PARTS = ("text", "input_text", "output_text")
THOUGHT_PARTS = ("thinking", "reasoning")
MEDIA = ("image", "audio", "video", "file")
LEARNED = ("weight", "train", "training", "loss", "learn")
MASKED = "masked"
TRUE, FALSE = ("true", "1", "1.0", "yes", "y", "on"), ("false", "0", "0.0", "no", "n", "off")
OWN_KEYS = ("learn", "written_role")
"""Keys that no template and no server gets."""
KEYS = {"role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name", *OWN_KEYS}
"""Keys of a canonical message."""

# Notes on a record, which are counted; each goes on after "12 records have ...".
JSON_MESSAGES = "messages written as JSON text, read as messages"
NAMED_ROLES = (
    "messages with other names of roles (such as human, gpt, observation), read as user, assistant, tool, system"
)
DEVELOPERS = "`developer` messages, read as system messages"
VALUES = "messages of `from` and `value`, read as role and content"
PARTS = "contents in parts, of which the texts are joined without a separator"
TOOL_TEXT = "tool messages whose content is no text, written as JSON"
THINKING = "thoughts under another name than reasoning_content, read as that"
CONTEXT = "answers marked as not to be learned (weight, train, loss, masked)"
MARKED_OTHERS = "messages that are no answers and are marked to be learned: only answers are targets"
NOTHING_LEARNED = "no answer to learn from, since all are marked as not to be learned"
EMPTY_TURN = "empty answers before the last one: context"


def messages_in(text: str, strict: bool) -> list[Any] | None:
    """The messages that a text writes as a list of JSON or of Python; None if it is another text.

    Args:
        text: the cell of a column.
        strict: the column may hold text as well: every element must look like a message.
    """
    if not text.lstrip().startswith("["):
        return None
    parsed = literal_in(text)
    if not isinstance(parsed, list) or not parsed or not all(isinstance(message, Mapping) for message in parsed):
        return None
    return parsed if not strict or all(map(looks_like_message, parsed)) else None


def looks_like_message(message: Any) -> bool:
    """Whether this is an object with a known role, and content, in the words of OpenAI or of ShareGPT."""
    if not isinstance(message, Mapping):
        return False
    known = {*chain.from_iterable(ROLES.values()), *CALLING, DEVELOPER}
    holds = {"content", "value", "tool_calls", "function_call"} & message.keys()
    return _role_of(message, Conversion()) in known and bool(holds)


def conversation(messages: Sequence[Any], where: str, conversion: Conversion) -> list[Message]:
    """Messages in the canonical form.

    Args:
        where: file, line and column, which errors name.

    Raises:
        DataError: no message, content that is no text, a weight that is neither 0 nor 1.
    """
    read = [plain(message) for message in messages]
    system = any(_role_of(message, conversion) == "system" for message in read)
    return [canonical(message, f"{where}[{index}]", conversion, system) for index, message in enumerate(read)]


def mark_context(fields: Mapping[str, Any], names: Sequence[str], conversion: Conversion) -> None:
    """Mark empty answers before the last one as context: they hold nothing to learn, but the user's turn follows."""
    for name in names:
        messages = fields.get(name)
        answers = (
            [message for message in messages if message["role"] == "assistant"] if isinstance(messages, list) else []
        )
        for message in answers if name == "prompt" else answers[:-1]:
            if not message["content"].strip() and not message.get("tool_calls"):
                message["learn"] = False
                conversion.note(EMPTY_TURN)
        if name != "prompt" and answers and not any(message.get("learn", True) for message in answers):
            conversion.note(NOTHING_LEARNED)


def canonical(message: Any, where: str, conversion: Conversion, keep_developer: bool = False) -> Message:
    """One message in the canonical form; a message in that form is returned as an equal one.

    Args:
        keep_developer: leave the role `developer`, since the conversation has a system message besides.

    Raises:
        DataError: no message, content that is no text, a weight that is neither 0 nor 1.
    """
    if not isinstance(message, Mapping):
        raise _no_message(where, type(message).__name__, conversion)
    # Parquet fills absent keys of a struct with null, which the tests of a template (`is defined`) take for a value.
    fields = {key: part for key, part in message.items() if part is not None}
    _rename(fields, conversion)
    if fields.get("role") is not None and not isinstance(fields["role"], str):
        raise DataError(f"{where}: the role must be text, found {type(fields['role']).__name__} ({fields['role']}).")
    if not isinstance(fields.get("role"), str):
        raise _no_message(where, ", ".join(map(str, message)) or "none", conversion)
    calling = _read_role(fields, conversion, keep_developer)
    _read_content(fields, where, conversion)
    if fields["role"] == "assistant":
        _read_thoughts(fields, conversion)
        read_calls(fields, calling, where, conversion)
    _read_learned(fields, where, conversion)
    if fields.get("content") is None:
        fields["content"] = _absent_content(fields, where)
    return {"role": fields.pop("role"), "content": fields.pop("content"), **fields}


def _no_message(where: str, described: str, conversion: Conversion) -> DataError:
    hint = 'Write each message as {"role": "user", "content": "..."}'
    if conversion.inner:
        names = ", ".join(f"{ours}: {theirs}" for ours, theirs in conversion.inner.items())
        hint = f"`columns` names the keys of messages {names}. Correct it, or w{hint[1:]}"
    return DataError(
        f"{where}: a message needs `role` and `content`, found {described}.",
        f"{hint}; other names of these keys: `columns: {{role: speaker, content: utterance}}`.",
    )


def _rename(fields: dict[str, Any], conversion: Conversion) -> None:
    """The user's names of keys, and ShareGPT's `from` and `value`, become the usual ones."""
    for ours, theirs in conversion.inner.items():
        if theirs in fields:
            fields[ours] = fields.pop(theirs)
    if "role" not in fields and "from" in fields:
        fields["role"] = fields.pop("from")
        if "content" not in fields and "value" in fields:
            fields["content"] = fields.pop("value")
        conversion.note(VALUES)


def _role_of(message: Any, conversion: Conversion) -> str:
    """The role of a message in lower case with `_` between its words; empty without one."""
    if not isinstance(message, Mapping):
        return ""
    role = message.get(conversion.inner.get("role", "role")) or message.get("role") or message.get("from")
    return "_".join(role.casefold().replace("-", " ").replace("_", " ").split()) if isinstance(role, str) else ""


def _read_role(fields: dict[str, Any], conversion: Conversion, keep_developer: bool) -> bool:
    """Give the message the usual name of its role; whether it is a turn that calls a tool."""
    role = _role_of({"role": fields["role"]}, Conversion())
    calling = role in CALLING
    if role == DEVELOPER and not keep_developer:
        fields |= {"role": "system", "written_role": fields["role"]}
        conversion.note(DEVELOPERS)
        return False
    usual = "assistant" if calling else next((usual for usual, names in ROLES.items() if role in names), None)
    if usual is None and role != DEVELOPER:
        conversion.note(f"messages of the role `{fields['role']}`, which only some chat templates know")
    if usual is not None and usual != fields["role"]:
        if usual == "tool" and role != usual:
            fields["written_role"] = fields["role"]
        fields["role"] = usual
        conversion.note(NAMED_ROLES)
    return calling


def _read_content(fields: dict[str, Any], where: str, conversion: Conversion) -> None:
    """Join content that is in parts; what a tool returns is written as JSON."""
    content, is_tool = fields.get("content"), fields["role"] == "tool"
    if content is None or isinstance(content, str):
        return
    parts = [content] if isinstance(content, Mapping) else content
    if isinstance(parts, list) and parts and all(_is_part(part, only_known=is_tool) for part in parts):
        fields["content"] = "".join(_part_text(part, fields, where) for part in parts)
        conversion.note(PARTS)
    elif is_tool:
        fields["content"] = json.dumps(content, ensure_ascii=False, default=str)
        conversion.note(TOOL_TEXT)
    elif content == []:
        del fields["content"]
    else:
        raise DataError(f"{where}: the content must be text, found {type(content).__name__} ({short(content)}).")


def _is_part(part: Any, only_known: bool) -> bool:
    """Whether an element of a content is a part of it; a tool's object may have a key `type` of its own."""
    if not isinstance(part, Mapping):
        return isinstance(part, str)
    kind = part.get("type", "text" if isinstance(part.get("text"), str) else None)
    return isinstance(kind, str) and (not only_known or kind in TEXT_PARTS or any(word in kind for word in MEDIA))


def _part_text(part: str | Mapping[str, Any], fields: dict[str, Any], where: str) -> str:
    """The text of a part. A thought is no text of it: it joins `reasoning_content`."""
    if isinstance(part, str):
        return part
    kind, text = part.get("type", "text"), part.get("text")
    if kind in TEXT_PARTS and isinstance(text, str):
        return text
    thought = part.get(kind, text)
    if kind in THOUGHT_PARTS and fields["role"] == "assistant" and isinstance(thought, str | list):
        thoughts = [thought] if isinstance(thought, str) else thought
        joined = "".join(_part_text(inner, {"role": ""}, where) for inner in thoughts)
        fields["reasoning_content"] = (fields.get("reasoning_content") or "") + joined
        return ""
    raise DataError(
        f"{where}: the content must be text, found list with a part of the type `{kind}` ({short(part)}).",
        "Language models learn from text alone: remove such parts, or describe them in words.",
    )


def _read_thoughts(fields: dict[str, Any], conversion: Conversion) -> None:
    """Thoughts under any name become `reasoning_content`; a second, different one stays under its name."""
    for name in THOUGHTS[1:]:
        if isinstance(fields.get(name), str) and fields.get("reasoning_content", fields[name]) == fields[name]:
            fields["reasoning_content"] = fields.pop(name)
            conversion.note(THINKING)


def _read_learned(fields: dict[str, Any], where: str, conversion: Conversion) -> None:
    """Marks such as `weight: 0` or `masked: true` become `learn: False`; those that say nothing leave."""
    marks = []
    for name in (*LEARNED, MASKED):
        if name not in fields:
            continue
        learned = _truth(fields[name])
        if learned is None and name == "weight":
            raise DataError(
                f"{where}: the weight of a message must be 0 (context) or 1 (learned), found {fields[name]!r}.",
                "Answers are learned or not; round the weights, or remove those that say something else.",
            )
        if learned is None and fields["role"] == "assistant":
            conversion.note(f"answers whose `{name}` is neither true nor false: learned like all others")
        if learned is not None:
            marks.append(learned != (name == MASKED))
            del fields[name]
    if not marks:
        return
    if fields["role"] != "assistant":
        if any(marks):
            conversion.note(MARKED_OTHERS)
    elif not all(marks):
        fields["learn"] = False
        conversion.note(CONTEXT)


def _truth(mark: Any) -> bool | None:
    """True, false, 0, 1 and such texts as a truth; None for anything else."""
    text = str(mark).strip().casefold() if isinstance(mark, bool | int | float | str) else ""
    return True if text in TRUE else False if text in FALSE else None


def _absent_content(fields: Mapping[str, Any], where: str) -> str:
    """An empty text, for messages that may have no content.

    Templates write null as the word None, or fail; an empty text they leave out.
    """
    if fields["role"] in ("assistant", "tool"):
        return ""
    raise DataError(f"{where}: the content must be text, found {type(None).__name__} (None).")
