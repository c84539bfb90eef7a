"""Shapes of records: TRL's formats, recognised and checked one record at a time.

Every record is recognised alone, so one file may mix shapes. Only this file checks the columns of a shape; `fields`
holds all other columns unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from luthier import parts
from luthier.data.forms.base import RecordShape
from luthier.errors import DataError
from luthier.records.calls import read_tools
from luthier.records.columns import Columns, add_system, ask_once, is_conversation, read_messages, rename, strings
from luthier.records.conversion import Conversion
from luthier.records.messages import OWN_KEYS, conversation, mark_context
from luthier.records.nulls import ColumnarRow, schemas_of
from luthier.types import Record, Shape

ONE_ANSWER: Mapping[Shape, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
"""Shapes of one answer, or of turns, with the columns that identify them."""

MESSAGE_SHAPES = ("messages", "prompt_completion", "preference")
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


class NumberForText(UnknownShape):
    """A record with a number where text is wanted; a column that `columns` names may hold numbers."""


class EmptyAnswer(DataError):
    """A record without an answer to learn from; the doctor counts these errors separately."""


def make_record(row: Any, columns: Columns, origin: str) -> Record:
    """Turn the object in one line into a Record without an id (see `identity.assign_ids`), its messages canonical.

    Args:
        row: the object in the line, which must be a mapping; a `ColumnarRow` if it is from a columnar file.
        columns: column of Luthier → column in the file, or several that are joined, for data with other names.
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
    conversion = Conversion(columnar=isinstance(row, ColumnarRow))
    try:
        fields = rename(row, columns, origin, conversion)
        shape = _shape(fields, columns, origin)
        fields = _read(fields, shape, origin, conversion)
        record = Record("", shape, fields, origin, notes=tuple(conversion.notes))
        _refuse_lone_surrogates(record)
    except UnknownShape as error:
        error.row = row
        raise
    except RecursionError:
        raise DataError(f"{origin}: a column is nested too deeply.") from None
    _refuse_empty(record)
    _refuse_unlearned(record)
    return record


def _read(fields: dict[str, Any], shape: Shape, origin: str, conversion: Conversion) -> dict[str, Any]:
    """The fields of a record of this shape in their canonical form, which the shape then checks."""
    part = shape_part(shape)
    answers = [name for name in shape_columns()[shape] if name != "prompt"]
    names = ["prompt", *answers] if fields.get("prompt") is not None and shape != "messages" else answers
    if (tools := read_tools(fields, conversion)) is not None or fields.get("tools") is not None:
        fields["tools"] = tools
        conversion.schemas = schemas_of(tools)
    if shape != "text":
        own = shape not in MESSAGE_SHAPES
        read_messages(fields, names, origin, conversion, strict=own)
        # Only texts and messages are turns of a conversation; a shape of the user's own may hold anything else.
        turns = (
            [name for name in names if isinstance(fields[name], str) or is_conversation(fields[name])] if own else names
        )
        answers = [name for name in turns if name != "prompt"]
        ask_once(fields, answers, conversion)
        add_system(fields, answers, conversion)
        mark_context(fields, turns, conversion)
    if part is not None:
        return part.read(fields, origin)
    for name in names:
        fields[name] = text_or_messages(fields[name], name, shape, origin)
    return fields


def label_of(record: Record) -> bool | None:
    """The label of a record of one answer: good (True) or bad (False); None without a label."""
    label = record.fields.get("label")
    return label if record.shape in ONE_ANSWER and isinstance(label, bool) else None


def seems_bad(record: Record) -> bool:
    """Whether `label` is neither true nor false but a word of BAD_LABELS."""
    label = record.fields.get("label")
    unread = record.shape in ONE_ANSWER and not isinstance(label, bool)
    return unread and str(label).strip().casefold() in BAD_LABELS


def messages_of(record: Record) -> list[dict[str, Any]]:
    """The record as one conversation, with its good answer; not for `text`, which has no turns.

    Raises:
        DataError: a preference pair of strings without a prompt, in which nothing marks the turns.
    """
    messages = _messages(good_side(record))
    return [{key: part for key, part in message.items() if key not in OWN_KEYS} for message in messages]


def unlearned(record: Record) -> frozenset[int]:
    """The indices in `messages_of(record)` of answers that are marked as context; empty for `text`."""
    if record.shape == "text":
        return frozenset()
    messages = _messages(good_side(record))
    return frozenset(index for index, message in enumerate(messages) if message.get("learn") is False)


def has_reference(record: Record) -> bool:
    """Whether the last answer is one to give: neither labelled bad nor marked as context."""
    if record.shape not in ("messages", "prompt_completion"):
        return label_of(record) is not False
    return label_of(record) is not False and last_answer(_messages(record)) not in unlearned(record)


def with_written_roles(record: Record, prefers: Callable[[str, str], bool]) -> Record:
    """The record, in which messages have the role that the user wrote where `prefers(written, usual)` says so."""
    changed: dict[str, Any] = {}
    for name in ("prompt", *shape_columns()[record.shape]):
        messages = record.fields.get(name)
        turns = messages if isinstance(messages, list) else []
        for index, message in enumerate(turns):
            written = message.get("written_role") if isinstance(message, Mapping) else None
            if written is not None and prefers(written, message["role"]):
                changed.setdefault(name, [*turns])[index] = {**message, "role": written}
    return replace(record, fields={**record.fields, **changed}) if changed else record


def _messages(record: Record) -> list[dict[str, Any]]:
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
        return conversation(content, f"{origin}: {name}", Conversion())
    wanted = {"messages": "a list of messages", "text": "a string"}.get(name, "a string or a list of messages")
    is_number = name != "messages" and isinstance(content, int | float) and not isinstance(content, bool)
    raise (NumberForText if is_number else DataError)(
        f"{origin}: `{name}` must be {wanted}, found {type(content).__name__} ({_short(content)}).",
        "Write numbers and JSON objects as strings: the model reads and writes text." if shape != "messages" else None,
    )


def _refuse_empty(record: Record) -> None:
    part = shape_part(record.shape)
    # A shape whose sides are records of another shape is checked by these; its own columns may hold anything.
    sides = [] if part is None else [side for _, side in part.sides(record) if side.shape != record.shape]
    for side in sides:
        _refuse_empty(side)
    for name in () if sides else shape_columns()[record.shape]:
        content = record.fields[name]
        if name == "prompt":
            continue
        if isinstance(content, str):
            empty = not content.strip()
        else:
            last = last_answer(content)
            empty = last == len(content) or not plain_text(content[last]).strip()
        if empty:
            raise EmptyAnswer(
                f"{record.origin}: `{name}` has no answer to learn from: {_short(content)}.",
                "Fill it in or remove the record; `luthier check` lists all such records.",
            )


def _refuse_unlearned(record: Record) -> None:
    """Refuse a judged answer that is marked as context: a pair would compare an answer with nothing."""
    part = shape_part(record.shape)
    for name, side in part.sides(record) if part is not None else ():
        messages = _messages(side) if side.shape != "text" else []
        last = last_answer(messages)
        if last < len(messages) and "learn" in messages[last]:
            raise DataError(
                f"{record.origin}: the {name} answer is marked as not to be learned, so there is nothing to compare.",
                "Remove the mark (weight, train, loss, masked) from the last message, or the record.",
            )


def _refuse_lone_surrogates(record: Record) -> None:
    # JSON may escape half a pair (\ud83d): Python reads it, and whatever encodes the text later fails without a line.
    for name in dict.fromkeys((*CONTENT_COLUMNS, *shape_columns()[record.shape])):
        try:
            for text in strings(record.fields.get(name)):
                text.encode()
        except UnicodeEncodeError as error:
            bad = error.object[error.start]
            raise DataError(
                f"{record.origin}: `{name}` holds half of a surrogate pair ({bad!r}), which is not valid Unicode.",
                "It usually comes from text cut in the middle of an emoji: repair or remove the record.",
            ) from None


def _listed(fields: Mapping[str, Any]) -> str:
    return ", ".join(str(name) for name in fields) or "none"


def _short(content: Any) -> str:
    text = repr(content)
    return text if len(text) <= 80 else f"{text[:77]}..."
