"""Tools and their calls in one form: `{"type": "function", "function": {"name", "arguments"}}`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.errors import DataError
from luthier.records.conversion import Conversion, json_in, literal_in, short
from luthier.records.nulls import arguments_without_absent, plain, tool_without_absent

ARGUMENTS = ("parameters", "args")
"""Other names of the arguments of a call."""

# Notes on a record, which are counted; each goes on after "12 records have ...".
JSON_TOOLS = "tools written as JSON text, read as a list of tools"
PARSED = "tool arguments written as JSON text, read as objects"
UNPARSED = "tool arguments that are no JSON object, kept as they are"
NO_ARGUMENTS = "tool calls without arguments, read as an empty object"
LEGACY = "calls under `function_call`, or in a turn of that role, read as tool_calls"
UNREAD_CALL = "turns of the role function_call that hold no call as JSON, kept as the assistant's text"
FLAT = "tool calls or tools without the key `function`, wrapped in it"
LEGACY_TOOLS = "tools in the column `functions`, read as tools"


def read_tools(fields: Mapping[str, Any], conversion: Conversion) -> Any:
    """The tools of a record as a list of `{"type": "function", "function": ...}`; what is no list of tools stays.

    The legacy column `functions` is read where there is no `tools`.
    """
    tools, columnar = plain(fields.get("tools")), conversion.columnar
    functions = plain(fields.get("functions")) if tools is None else None
    if isinstance(functions, str):
        functions = literal_in(functions)
    if isinstance(functions, list) and functions and all(map(_is_call, functions)):
        tools = [{"type": "function", "function": function} for function in functions]
        conversion.note(LEGACY_TOOLS)
    if isinstance(tools, str):
        if tools.strip() in ("", "null", "None"):
            return None
        if not isinstance(parsed := literal_in(tools), list | dict):
            return tools
        tools, columnar = parsed, False  # a columnar file adds no null inside a text
        conversion.note(JSON_TOOLS)
    if isinstance(tools, Mapping):
        tools = [tools]
    return [_tool(tool, conversion, columnar) for tool in tools] if isinstance(tools, list) else tools


def _tool(tool: Any, conversion: Conversion, columnar: bool) -> Any:
    if isinstance(tool, str) and isinstance(parsed := literal_in(tool), dict):
        tool, columnar = parsed, False
        conversion.note(JSON_TOOLS)
    if not isinstance(tool, Mapping):
        return tool
    tool = tool_without_absent(tool, columnar, conversion.note)
    if "function" not in tool and "name" in tool and ("parameters" in tool or "description" in tool):
        conversion.note(FLAT)
        return {"type": "function", "function": {key: part for key, part in tool.items() if key != "type"}}
    return tool


def read_calls(fields: dict[str, Any], calling: bool, where: str, conversion: Conversion) -> None:
    """The calls of a message as a list of objects with `function`."""
    calls = fields.get("tool_calls")
    if isinstance(calls, str):
        parsed = json_in(calls)
        calls = parsed if isinstance(parsed, list | dict) else ([] if calls.strip() in ("", "null", "[]") else calls)
    legacy = fields.get("function_call")
    if isinstance(legacy, str) and isinstance(parsed := json_in(legacy), dict):
        legacy = parsed
    if not calls and isinstance(legacy, Mapping) and _is_call(legacy):
        calls, _ = [_wrapped(legacy)], fields.pop("function_call")
        conversion.note(LEGACY)
    if not calls and calling:
        calls = _calls_in(fields.get("content"))
        if calls:
            fields["content"] = None
            conversion.note(LEGACY)
        else:
            conversion.note(UNREAD_CALL)
    if isinstance(calls, Mapping):
        calls = [calls]
    if calls and not (isinstance(calls, list) and all(map(_may_be_call, calls))):
        raise DataError(f"{where}: `tool_calls` must be a list of calls, found {short(calls)}.")
    if calls:
        fields["tool_calls"] = [_call(call, conversion) for call in calls]
    else:
        fields.pop("tool_calls", None)


def _may_be_call(call: Any) -> bool:
    return isinstance(call, Mapping) or (isinstance(call, str) and isinstance(json_in(call), dict))


def _calls_in(content: Any) -> list[Any]:
    """The calls that the content of a calling turn holds as JSON: one or a list of them."""
    parsed = json_in(content) if isinstance(content, str) else content
    calls = parsed if isinstance(parsed, list) else [parsed]
    return [_wrapped(call) for call in calls] if all(map(_is_call, calls)) else []


def _wrapped(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call as an object with the key `function`."""
    if call.get("function"):
        return dict(call)
    about = {key: call[key] for key in ("id", "type") if call.get(key) is not None}
    return {**about, "type": "function", "function": {key: part for key, part in call.items() if key not in about}}


def _is_call(call: Any) -> bool:
    if not isinstance(call, Mapping):
        return False
    function = call.get("function") or call  # null where another row of a columnar file has the key
    return isinstance(function, Mapping) and isinstance(function.get("name"), str)


def _call(call: Any, conversion: Conversion) -> Any:
    """A call with the key `function`, in the order of its keys, which templates may write."""
    if isinstance(call, str) and isinstance(parsed := json_in(call), dict):
        call = parsed
    if not isinstance(call, Mapping) or not _is_call(call):
        return call
    call = {key: part for key, part in call.items() if part is not None}
    if "function" not in call:
        conversion.note(FLAT)
        call = _wrapped(call)
    function = {key: part for key, part in call["function"].items() if part is not None}
    if "arguments" not in function:
        function = {"arguments" if key in ARGUMENTS else key: part for key, part in function.items()}
    function.setdefault("arguments", None)
    function["arguments"] = _arguments(function["arguments"], function["name"], conversion)
    return {**call, "function": function}


def _arguments(arguments: Any, tool: str, conversion: Conversion) -> Any:
    """Arguments as an object, without the nulls that only a columnar file has."""
    columnar = conversion.columnar
    if arguments is None or (isinstance(arguments, str) and arguments.strip() in ("", "null")):
        conversion.note(NO_ARGUMENTS)
        return {}
    if isinstance(arguments, str):
        # A columnar file adds no null inside a text.
        parsed, columnar = json_in(arguments), False
        if isinstance(parsed, str):  # encoded twice
            parsed = json_in(parsed)
        if isinstance(parsed, dict):
            conversion.note(PARSED)
            arguments = parsed
    if not isinstance(arguments, Mapping):
        conversion.note(UNPARSED)
        return arguments
    return arguments_without_absent(arguments, conversion.schemas.get(tool), columnar, conversion.note)


def for_server(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Messages as servers of OpenAI's interface take them: the arguments of calls are JSON text there."""
    sent: list[Mapping[str, Any]] = []
    for message in messages:
        calls = [_with_text(call) for call in message.get("tool_calls") or ()]
        sent.append({**message, "tool_calls": calls} if calls else message)
    return sent


def _with_text(call: Any) -> Any:
    arguments = call["function"].get("arguments") if _is_call(call) and "function" in call else None
    if not isinstance(arguments, Mapping | list):
        return call
    return {**call, "function": {**call["function"], "arguments": json.dumps(arguments, ensure_ascii=False)}}
