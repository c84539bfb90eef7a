"""What a record may look like: TRL's formats, recognised and checked one record at a time.

A record is judged alone, so one file may mix shapes. The shape's own columns are checked here and
nowhere else; every other column travels on in `fields` untouched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from luthier import parts
from luthier.data.forms.base import RecordShape
from luthier.errors import DataError
from luthier.types import Record, Shape

ONE_ANSWER: Mapping[Shape, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
"""Shapes of one answer, or of turns, with the columns that tell them."""

CONTENT_COLUMNS = ("messages", "prompt", "completion", "text", "chosen", "rejected", "tools")
LIKELY_COLUMNS = {
    "prompt": ("question", "instruction", "input", "query", "problem", "user", "context"),
    "completion": ("answer", "output", "response", "target", "solution", "label", "canonical_solution"),
    "messages": ("conversations", "conversation", "dialog", "dialogue", "chat"),
    "text": ("content", "document", "body"),
}

SAID_BAD = {"false", "bad", "wrong", "incorrect", "rejected", "0", "-1"}
"""Labels that may be meant as `false`; they may mean something else, so they only raise a doubt."""


@cache
def shape_columns() -> Mapping[Shape, tuple[str, ...]]:
    """Shape → the columns that tell it, in the order in which shapes are tried: those of several answers come early."""
    several = {entry.name: tuple(entry.constants.get("COLUMNS", ())) for entry in parts.catalogue("shape")}
    first = {"messages": ONE_ANSWER["messages"]}
    return {**first, **several, **ONE_ANSWER}


@cache
def shape_part(shape: Shape) -> RecordShape | None:
    """The part that reads a shape of several answers; None for the shapes of one."""
    return None if shape in ONE_ANSWER else parts.build("shape", shape)


def form_of(record: Record) -> str:
    """What objectives that read all the record's answers call them in NEEDS; empty where there is one answer."""
    return form_of_shape(record.shape)


def form_of_shape(shape: Shape) -> str:
    """What objectives call the answers of a shape in NEEDS; empty of a shape of one answer."""
    part = shape_part(shape)
    return "" if part is None else part.FORM


def good_side(record: Record) -> Record:
    """The record with its good answer alone, where its shape of several answers says what that is a record of."""
    part = shape_part(record.shape)
    return record if part is None else part.sides(record)[0][1]


class EmptyAnswer(DataError):
    """A record has nothing to learn from; the doctor counts these apart."""


def make_record(row: Any, columns: Mapping[str, str], origin: str) -> Record:
    """Turn one line's object into a Record without an id (`assign_ids` gives it).

    Args:
        row: what the line held; anything but a mapping is refused.
        columns: our name → the user's column, for data that uses other names.
        origin: "data.jsonl:12", put into every message.

    Raises:
        DataError: a missing column, a value of the wrong type, text that is not Unicode.
        EmptyAnswer: an answer (or text) with nothing in it.
    """
    if not isinstance(row, Mapping):
        raise DataError(
            f"{origin}: expected an object with named columns, found {type(row).__name__}.",
            'Write each record as {"prompt": "...", "completion": "..."}; a .json file may hold one list of them.',
        )
    fields = _rename(row, columns, origin)
    shape = _shape(fields, columns, origin)
    if (part := shape_part(shape)) is not None:
        fields = part.read(fields, origin)
    else:
        for name in (*ONE_ANSWER[shape], *(("prompt",) if fields.get("prompt") is not None else ())):
            fields[name] = text_or_messages(fields[name], name, shape, origin)
    record = Record("", shape, fields, origin)
    _refuse_lone_surrogates(record)
    _refuse_empty(record)
    return record


def assign_ids(records: list[Record]) -> list[Record]:
    """Give ids: the `id` column where every record has one and all differ, else the content's hash.

    Identical records without ids are told apart by a suffix: `ab12...`, `ab12...-2`.
    """
    own = [record.fields.get("id") for record in records]
    usable = all(isinstance(value, str | int) and not isinstance(value, bool) and value != "" for value in own)
    if records and usable and len({str(value) for value in own}) == len(own):
        return [replace(record, id=str(value)) for record, value in zip(records, own, strict=True)]
    seen: dict[str, int] = {}
    named = []
    for record in records:
        key = content_hash(record)[:16]
        seen[key] = seen.get(key, 0) + 1
        named.append(replace(record, id=key if seen[key] == 1 else f"{key}-{seen[key]}"))
    return named


def content_hash(record: Record) -> str:
    """Hex digest of what the model reads and learns; ids, origins and further columns do not count."""
    columns = dict.fromkeys((*CONTENT_COLUMNS, *shape_columns()[record.shape]))
    content = {name: record.fields[name] for name in columns if record.fields.get(name) is not None}
    if (label := label_of(record)) is not None:
        content["label"] = label
    text = json.dumps([record.shape, content], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def label_of(record: Record) -> bool | None:
    """Whether the record's one answer is said to be good (`label: true`) or bad (`false`); None if nothing is said."""
    label = record.fields.get("label")
    return label if record.shape == "prompt_completion" and isinstance(label, bool) else None


def seems_bad(record: Record) -> bool:
    """Whether `label` is neither true nor false and still reads as if the answer were bad."""
    label = record.fields.get("label")
    unread = record.shape == "prompt_completion" and not isinstance(label, bool)
    return unread and str(label).strip().casefold() in SAID_BAD


def messages_of(record: Record) -> list[dict[str, Any]]:
    """The record as one conversation; of a preference pair the chosen side. `text` has none.

    Raises:
        DataError: a preference pair of plain strings without a prompt, whose turns cannot be told.
    """
    record = good_side(record)
    fields = record.fields
    if record.shape == "messages":
        return list(fields["messages"])
    answer = fields["chosen"] if record.shape == "preference" else fields["completion"]
    prompt = fields["prompt"]
    if prompt is None and isinstance(answer, str):
        raise DataError(
            "`chosen` is a string and there is no `prompt` column.",
            "Add the prompt as a column of its own, or write chosen and rejected as lists of messages.",
        )
    opening = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt or [])
    closing = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else list(answer)
    return opening + closing


def prompt_length(record: Record) -> int:
    """How many of `messages_of(record)` belong to the prompt column (0 where there is no such column)."""
    record = good_side(record)
    if record.shape == "messages" or record.fields.get("prompt") is None:
        return 0
    prompt = record.fields["prompt"]
    return 1 if isinstance(prompt, str) else len(prompt)


def plain_text(message: Mapping[str, Any]) -> str:
    """What a message says: its content, or its tool calls as JSON when it has no content."""
    content = message.get("content") or ""
    if not content and message.get("tool_calls"):
        return json.dumps(message["tool_calls"], ensure_ascii=False)
    return content


def question_and_answer(record: Record) -> tuple[str, str]:
    """The text before the last answer and that answer; of `text` the whole and an empty string."""
    record = good_side(record)
    if record.shape == "text":
        return record.fields["text"], ""
    if record.shape == "preference" and record.fields["prompt"] is None and isinstance(record.fields["chosen"], str):
        return record.fields["chosen"], record.fields["rejected"]
    messages = messages_of(record)
    last = last_answer(messages)
    before = "\n".join(plain_text(message) for message in messages[:last])
    return before, plain_text(messages[last]) if last < len(messages) else ""


def last_answer(messages: list[dict[str, Any]]) -> int:
    """Index of the last assistant message, or the number of messages when there is none."""
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return answers[-1] if answers else len(messages)


def _rename(row: Mapping[str, Any], columns: Mapping[str, str], origin: str) -> dict[str, Any]:
    for ours, theirs in columns.items():
        if theirs not in row:
            raise DataError(
                f"{origin}: `columns` takes {ours} from `{theirs}`, which is missing. Columns found: {_listed(row)}.",
                "Correct the name under `columns:` in the recipe.",
            )
    fields = {name: value for name, value in row.items() if name not in columns.values()}
    return fields | {ours: row[theirs] for ours, theirs in columns.items()}


def _shape(fields: Mapping[str, Any], columns: Mapping[str, str], origin: str) -> Shape:
    present = {name for name, value in fields.items() if value is not None}
    for names in (present & set(columns), present):
        for shape, required in shape_columns().items():
            if names.issuperset(required):
                return shape
    several = ", or ".join(" and ".join(shape_columns()[entry.name]) for entry in parts.catalogue("shape"))
    raise DataError(
        f"{origin}: no known shape. Columns found: {_listed(fields)}; expected messages, or prompt and completion, "
        f"or text, or {several}.",
        f"Name yours in the recipe, for example `columns: {{{_suggest(fields)}}}`.",
    )


def _suggest(fields: Mapping[str, Any]) -> str:
    found = {}
    for ours, likely in LIKELY_COLUMNS.items():
        match = ours if ours in fields else next((name for name in likely if name in fields), None)
        if match is not None:
            found[ours] = match
    names = list(fields)
    if "messages" in found:
        return f"messages: {found['messages']}"
    if "text" in found and len(found) == 1:
        return f"text: {found['text']}"
    prompt = found.get("prompt") or next((name for name in names if name != found.get("completion")), "question")
    answer = found.get("completion") or next((name for name in names if name != prompt), "answer")
    return f"prompt: {prompt}, completion: {answer}"


def text_or_messages(value: Any, name: str, shape: Shape, origin: str) -> Any:
    """A column's value, if it is text or a list of messages; `origin` and `name` stand in the message.

    Raises:
        DataError: it is neither.
    """
    if isinstance(value, str) and name != "messages":
        return value
    if isinstance(value, list) and name != "text":
        return [_message(message, f"{origin}: {name}[{index}]") for index, message in enumerate(value)]
    wanted = {"messages": "a list of messages", "text": "a string"}.get(name, "a string or a list of messages")
    raise DataError(
        f"{origin}: `{name}` must be {wanted}, found {type(value).__name__} ({_short(value)}).",
        "Write numbers and JSON objects as strings: the model reads and writes text." if shape != "messages" else None,
    )


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        found = _listed(message) if isinstance(message, Mapping) else type(message).__name__
        raise DataError(
            f"{where}: a message needs `role` and `content`, found {found}.",
            'Write each message as {"role": "user", "content": "..."}.',
        )
    content = message.get("content")
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise DataError(f"{where}: the content must be text, found {type(content).__name__} ({_short(content)}).")
    # Parquet fills absent keys of a struct with null, which templates take for a value.
    return {key: value for key, value in message.items() if value is not None or key == "content"}


def _refuse_empty(record: Record) -> None:
    part = shape_part(record.shape)
    others = [] if part is None else [side for _, side in part.sides(record) if side.shape != record.shape]
    for side in others:
        _refuse_empty(side)
    for name in () if others else shape_columns()[record.shape]:
        value = record.fields[name]
        if isinstance(value, str):
            empty = not value.strip() and name != "prompt"
        else:
            empty = _has_empty_answer(value) or (name != "prompt" and not _answers(value))
        if empty:
            raise EmptyAnswer(
                f"{record.origin}: `{name}` has no answer to learn from: {_short(record.fields[name])}.",
                "Fill it in or remove the record; `luthier check` lists all such records.",
            )


def _answers(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message for message in messages if message["role"] == "assistant"]


def _has_empty_answer(messages: list[dict[str, Any]]) -> bool:
    return any(not plain_text(message).strip() for message in _answers(messages))


def _refuse_lone_surrogates(record: Record) -> None:
    for name in dict.fromkeys((*CONTENT_COLUMNS, *shape_columns()[record.shape])):
        try:
            for text in _strings(record.fields.get(name)):
                text.encode()
        except UnicodeEncodeError as error:
            bad = error.object[error.start]
            raise DataError(
                f"{record.origin}: `{name}` holds half of a surrogate pair ({bad!r}), which is not valid Unicode.",
                "It usually comes from text cut in the middle of an emoji: repair or remove the record.",
            ) from None


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _listed(fields: Mapping[str, Any]) -> str:
    return ", ".join(str(name) for name in fields) or "none"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
