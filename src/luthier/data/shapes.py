"""Shapes of records: TRL's formats, recognised and checked one record at a time.

Every record is recognised alone, so one file may mix shapes. Only this file checks the columns of a shape; `fields`
holds all other columns unchanged.
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

Columns = Mapping[str, str | list[str]]
"""Column of Luthier → column of the file, or several that are joined."""
ONE_ANSWER: Mapping[Shape, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
"""Shapes of one answer, or of turns, with the columns that identify them."""

CONTENT_COLUMNS = ("messages", "prompt", "completion", "text", "chosen", "rejected", "tools")
BAD_LABELS = {"false", "bad", "wrong", "incorrect", "rejected", "0", "-1"}
"""Labels that may mean `false`. They may also be classes of a task, so they lead to a warning and are not read."""


@cache
def shape_columns() -> Mapping[Shape, tuple[str, ...]]:
    """Shape → the columns that identify it, in the order in which shapes are tried."""
    # A record of several answers may also have the columns of a shape of one, such as `text`: those come later.
    several = {entry.name: tuple(entry.constants.get("COLUMNS", ())) for entry in parts.catalogue("shape")}
    first = {"messages": ONE_ANSWER["messages"]}
    return {**first, **several, **ONE_ANSWER}


@cache
def shape_part(shape: Shape) -> RecordShape | None:
    """The part that reads a shape of several answers; None for a shape of one answer."""
    return None if shape in ONE_ANSWER else parts.build("shape", shape)


def form_of(record: Record) -> str:
    """The FORM of the record's shape, by which objectives ask for all answers in NEEDS; empty with one answer."""
    return form_of_shape(record.shape)


def form_of_shape(shape: Shape) -> str:
    """The FORM of a shape, by which objectives ask for all answers in NEEDS; empty for a shape of one answer."""
    part = shape_part(shape)
    return "" if part is None else part.FORM


def good_side(record: Record) -> Record:
    """The record with its good answer alone; a record of one answer is returned as it is."""
    part = shape_part(record.shape)
    return record if part is None else part.sides(record)[0][1]


class UnknownShape(DataError):
    """A record whose columns are those of no shape: `row` holds it as it is in the file, for `guess`."""

    row: Mapping[str, Any] = {}


class EmptyAnswer(DataError):
    """A record without an answer to learn from; the doctor counts these errors separately."""


def make_record(row: Any, columns: Columns, origin: str) -> Record:
    """Turn the object in one line into a Record without an id (see `assign_ids`).

    Args:
        row: the object in the line, which must be a mapping.
        columns: column of Luthier → column in the file, for data with other names.
        origin: "data.jsonl:12", part of every message.

    Raises:
        DataError: a missing column, a value of the wrong type, text that is not Unicode.
        EmptyAnswer: an empty answer or text.
    """
    if not isinstance(row, Mapping):
        raise DataError(
            f"{origin}: expected an object with named columns, found {type(row).__name__}.",
            'Write each record as {"prompt": "...", "completion": "..."}; a .json file may hold one list of them.',
        )
    fields = _rename(row, columns, origin)
    try:
        shape = _shape(fields, columns, origin)
    except UnknownShape as error:
        error.row = row
        raise
    if (part := shape_part(shape)) is not None:
        fields = part.read(fields, origin)
    else:
        names = [*ONE_ANSWER[shape]]
        if fields.get("prompt") is not None:
            names.append("prompt")
        for name in dict.fromkeys(names):
            fields[name] = text_or_messages(fields[name], name, shape, origin)
    record = Record("", shape, fields, origin)
    _refuse_lone_surrogates(record)
    _refuse_empty(record)
    return record


def assign_ids(records: list[Record]) -> list[Record]:
    """The records with ids: of the column `id` if all records have different ones, else the hash of the content.

    A suffix distinguishes identical records without ids: `ab12...`, `ab12...-2`.
    """
    own = [record.fields.get("id") for record in records]
    # bool is a kind of int in Python: a column of flags is no column of ids.
    usable = all(isinstance(name, str | int) and not isinstance(name, bool) and name != "" for name in own)
    if records and usable and len({str(name) for name in own}) == len(own):
        return [replace(record, id=str(name)) for record, name in zip(records, own, strict=True)]
    counts: dict[str, int] = {}
    named = []
    for record in records:
        key = content_hash(record)[:16]
        counts[key] = counts.get(key, 0) + 1
        named.append(replace(record, id=key if counts[key] == 1 else f"{key}-{counts[key]}"))
    return named


def content_hash(record: Record) -> str:
    """Hex digest of the columns that a model reads and learns; ids, origins and further columns do not enter it."""
    # `label` is no column of CONTENT_COLUMNS: it counts only where it is read, as true or false.
    columns = dict.fromkeys((*CONTENT_COLUMNS, *shape_columns()[record.shape]))
    content = {name: record.fields[name] for name in columns if record.fields.get(name) is not None}
    if (label := label_of(record)) is not None:
        content["label"] = label
    text = json.dumps([record.shape, content], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def label_of(record: Record) -> bool | None:
    """The label of a record of one answer: good (True) or bad (False); None without a label."""
    label = record.fields.get("label")
    return label if record.shape == "prompt_completion" and isinstance(label, bool) else None


def seems_bad(record: Record) -> bool:
    """Whether `label` is neither true nor false but a word of BAD_LABELS."""
    label = record.fields.get("label")
    unread = record.shape == "prompt_completion" and not isinstance(label, bool)
    return unread and str(label).strip().casefold() in BAD_LABELS


def messages_of(record: Record) -> list[dict[str, Any]]:
    """The record as one conversation, with its good answer; not for `text`, which has no turns.

    Raises:
        DataError: a preference pair of strings without a prompt, in which nothing marks the turns.
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
    """The number of messages of `messages_of(record)` that are from the column `prompt`; 0 without that column."""
    record = good_side(record)
    if record.shape == "messages" or record.fields.get("prompt") is None:
        return 0
    prompt = record.fields["prompt"]
    return 1 if isinstance(prompt, str) else len(prompt)


def plain_text(message: Mapping[str, Any]) -> str:
    """The content of a message, or, without content, its tool calls as JSON."""
    content = message.get("content") or ""
    if not content and message.get("tool_calls"):
        return json.dumps(message["tool_calls"], ensure_ascii=False)
    return content


def question_and_answer(record: Record) -> tuple[str, str]:
    """The text before the last answer, and the last answer; for `text` the whole text and an empty string."""
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
    """Index of the last assistant message; the number of messages if there is none."""
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return answers[-1] if answers else len(messages)


def _rename(row: Mapping[str, Any], columns: Columns, origin: str) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    read: set[str] = set()
    for ours, theirs in columns.items():
        names = [theirs] if isinstance(theirs, str) else theirs
        for name in names:
            if name not in row:
                raise DataError(
                    f"{origin}: `columns` takes {ours} from `{name}`, which is missing. Columns found: {_listed(row)}.",
                    "Correct the name under `columns:` in the recipe.",
                )
        read.update(names)
        texts = [str(row[name]) for name in names if row[name] not in (None, "")]
        renamed[ours] = row[names[0]] if isinstance(theirs, str) else "\n\n".join(texts)
    return {name: value for name, value in row.items() if name not in read} | renamed


def _shape(fields: Mapping[str, Any], columns: Columns, origin: str) -> Shape:
    present = {name for name, value in fields.items() if value is not None}
    # Columns that the recipe names come first: a file may hold those of several shapes.
    for names in (present & set(columns), present):
        for shape, required in shape_columns().items():
            if names.issuperset(required):
                return shape
    several = ", or ".join(" and ".join(shape_columns()[entry.name]) for entry in parts.catalogue("shape"))
    raise UnknownShape(
        f"{origin}: no known shape. Columns found: {_listed(fields)}; expected messages, or prompt and completion, "
        f"or text, or {several}."
    )


def text_or_messages(content: Any, name: str, shape: Shape, origin: str) -> Any:
    """The content of the column `name`, if it is text or a list of messages.

    Raises:
        DataError: the content is neither; the message names `origin` and the column.
    """
    if isinstance(content, str) and name != "messages":
        return content
    if isinstance(content, list) and name != "text":
        return [_message(message, f"{origin}: {name}[{index}]") for index, message in enumerate(content)]
    wanted = {"messages": "a list of messages", "text": "a string"}.get(name, "a string or a list of messages")
    raise DataError(
        f"{origin}: `{name}` must be {wanted}, found {type(content).__name__} ({_short(content)}).",
        "Write numbers and JSON objects as strings: the model reads and writes text." if shape != "messages" else None,
    )


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        described = _listed(message) if isinstance(message, Mapping) else type(message).__name__
        raise DataError(
            f"{where}: a message needs `role` and `content`, found {described}.",
            'Write each message as {"role": "user", "content": "..."}.',
        )
    content = message.get("content")
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise DataError(f"{where}: the content must be text, found {type(content).__name__} ({_short(content)}).")
    # Parquet fills absent keys of a struct with null, which the tests of a template (`is defined`) take for a value.
    return {key: value for key, value in message.items() if value is not None or key == "content"}


def _refuse_empty(record: Record) -> None:
    part = shape_part(record.shape)
    # A shape whose sides are records of another shape is checked by these; its own columns may hold anything.
    sides = [] if part is None else [side for _, side in part.sides(record) if side.shape != record.shape]
    for side in sides:
        _refuse_empty(side)
    for name in () if sides else shape_columns()[record.shape]:
        content = record.fields[name]
        if isinstance(content, str):
            empty = not content.strip() and name != "prompt"
        else:
            empty = _has_empty_answer(content) or (name != "prompt" and not _answers(content))
        if empty:
            raise EmptyAnswer(
                f"{record.origin}: `{name}` has no answer to learn from: {_short(content)}.",
                "Fill it in or remove the record; `luthier check` lists all such records.",
            )


def _answers(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message for message in messages if message["role"] == "assistant"]


def _has_empty_answer(messages: list[dict[str, Any]]) -> bool:
    return any(not plain_text(message).strip() for message in _answers(messages))


def _refuse_lone_surrogates(record: Record) -> None:
    # JSON may escape half a pair (\ud83d): Python reads it, and whatever encodes the text later fails without a line.
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


def _strings(content: Any) -> Iterable[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _strings(key)
            yield from _strings(value)
    elif isinstance(content, list):
        for element in content:
            yield from _strings(element)


def _listed(fields: Mapping[str, Any]) -> str:
    return ", ".join(str(name) for name in fields) or "none"


def _short(content: Any) -> str:
    text = repr(content)
    return text if len(text) <= 80 else f"{text[:77]}..."
