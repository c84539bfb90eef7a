"""The columns of a record before its shape is checked: names, joined columns, JSON text, system, a repeated prompt.

What changes a record is noted, and what the recipe does not read is named: see `unread_columns`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeGuard
from unicodedata import normalize

from luthier.errors import DataError
from luthier.records.calls import LEGACY_TOOLS
from luthier.records.choices import chosen, lists_choices, read_choices, written
from luthier.records.conversion import Conversion
from luthier.records.messages import (
    JSON_MESSAGES,
    KEYS,
    Message,
    conversation,
    looks_like_message,
    messages_in,
)
from luthier.records.nulls import plain
from luthier.types import EVERY, Record

Columns = Mapping[str, str | Sequence[str]]
"""Luthier's column → the file's, or several of the file's, whose texts are joined."""

MESSAGE_COLUMNS = ("messages", "prompt", "completion", "chosen", "rejected")
TEXT_COLUMNS = ("prompt", "completion", "text", "chosen", "rejected", "system")
MESSAGE_KEYS = ("role", "content", "reasoning_content", "tool_calls")
"""Keys of a message that `columns` may rename inside the messages."""
LABELLED = ("messages", "prompt_completion", "text")
"""Shapes of one answer, beside which a label is read."""
ALWAYS_READ = ("id", "choices", "metric")
"""Columns that the ids and the metrics of records read, besides those that a recipe names."""
BETWEEN = "\n\n"
"""Between joined columns: a blank line, as between paragraphs."""
WORDS_OF_TEXT = 3
WORD_OF_CODE = re.compile(r"\w+")
WORD = re.compile(r"[\u3040-\u9fff\uac00-\ud7af]|[^\s\u3040-\u9fff\uac00-\ud7af]+")

NUMBERS = "numbers in columns that `columns` names, written as text"
TRUTHS = "true and false in columns that `columns` names, written as these words"
JOINED_INPUT = "an `input` besides the `instruction`, joined to the prompt by a blank line"
SYSTEM = "a `system` column, read as the system message"
TWO_SYSTEMS = "a `system` column that differs from the conversation's own system message, which is kept"
BEGINS = "answers that begin with the text of the prompt, which so stands there twice"
UNLISTED = (
    "`choices` that the prompt does not list, and an answer that is a letter or index of one, which nobody could know: "
    "`columns: {prompt: [question, choices]}` lists them"
)
REPEATED = "a prompt that the answers repeat as a turn of the user: asked once"


def rename(row: Mapping[str, Any], columns: Columns, origin: str, conversion: Conversion) -> dict[str, Any]:
    """The fields of a row under Luthier's names; names of keys inside messages go to `conversion`.

    Raises:
        DataError: a column that is missing, or that cannot be joined; the message names `origin`.
    """
    outer = {ours: theirs for ours, theirs in columns.items() if ours not in MESSAGE_KEYS}
    inner = {ours: theirs for ours, theirs in columns.items() if ours in MESSAGE_KEYS and isinstance(theirs, str)}
    if len(outer) < len(columns):
        if _holds_messages(_renamed(row, outer, origin, Conversion())):
            conversion.inner = inner
        else:
            outer = columns
    fields = _renamed(row, outer, origin, conversion)
    text, more = fields.get("prompt"), _as_text(plain(fields.get("input")))
    # Alpaca's form: the question is in two columns, and naming the first alone would lose half of it.
    if outer.get("prompt") == "instruction" and isinstance(text, str) and more and more.strip():
        fields["prompt"] = BETWEEN.join(part for part in (text, more) if part.strip())
        conversion.note(JOINED_INPUT)
    if _lacks_choices(fields):
        conversion.note(UNLISTED)
    return fields


def _lacks_choices(fields: Mapping[str, Any]) -> bool:
    """Whether an answer names one of the choices by letter or index, and its prompt does not list them."""
    prompt, answer, choices = fields.get("prompt"), fields.get("completion"), read_choices(plain(fields.get("choices")))
    if choices is None or not isinstance(prompt, str) or not isinstance(answer, str):
        return False
    unclear = chosen(answer, choices, "text") is None and chosen(answer, choices) is not None
    return unclear and not lists_choices(prompt, choices)


def without_input(question: str, record: Record) -> str:
    """The question without the `input` that reading joined to it."""
    more = _as_text(plain(record.fields.get("input"))) if JOINED_INPUT in record.notes else None
    return question.removesuffix(more).removesuffix(BETWEEN) if more else question


def _renamed(row: Mapping[str, Any], columns: Columns, origin: str, conversion: Conversion) -> dict[str, Any]:
    taken: set[str] = set()
    renamed: dict[str, Any] = {}
    for ours, theirs in columns.items():
        names = [theirs] if isinstance(theirs, str) else [*theirs]
        for name in names:
            if name not in row:
                raise DataError(
                    f"{origin}: `columns` takes {ours} from `{name}`, which is missing. Columns found: {_listed(row)}.",
                    "Correct the name under `columns:` in the recipe.",
                )
        taken |= set(names) if isinstance(theirs, str) else {*names} - {"choices"}  # listed, and compared too
        if isinstance(theirs, str):
            renamed[ours] = _text_of_number(ours, row[theirs], conversion)
        else:
            choices = str(columns.get("choices", "choices"))
            renamed[ours] = _joined(ours, {name: row[name] for name in names}, choices, origin, conversion)
    return {name: cell for name, cell in row.items() if name not in taken} | renamed


def _joined(ours: str, cells: Mapping[str, Any], offered: str, origin: str, conversion: Conversion) -> str:
    """The texts of several cells, those of choices, which the cell `offered` may hold, one below the other."""
    texts = []
    for name, cell in cells.items():
        if name == offered and (choices := read_choices(plain(cell))) is not None:
            texts.append(written(choices))
            continue
        text = _as_text(plain(cell))
        if text is None and cell is not None:
            raise DataError(
                f"{origin}: `columns` joins `{name}` into {ours}, which holds {type(cell).__name__} and no text.",
                "Join columns of text, numbers or choices.",
            )
        if not isinstance(cell, str | None):
            conversion.note(NUMBERS)
        texts.append(text or "")
    return BETWEEN.join(text for text in texts if text.strip())


def _text_of_number(ours: str, cell: Any, conversion: Conversion) -> Any:
    number = plain(cell)
    if ours in TEXT_COLUMNS and isinstance(number, bool):
        conversion.note(TRUTHS)
        return str(number).lower()
    if ours not in TEXT_COLUMNS or isinstance(number, str) or (text := _as_text(number)) is None:
        return cell
    conversion.note(NUMBERS)
    return text


def _as_text(cell: Any) -> str | None:
    """A text, or a number as text; None for anything else. A whole number has no `.0`, which only columns add."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return None
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15 else str(cell)


def _holds_messages(fields: Mapping[str, Any]) -> bool:
    cells = [plain(fields.get(name)) for name in MESSAGE_COLUMNS]
    listed = any(isinstance(cell, list | dict) for cell in cells)
    return listed or any(isinstance(cell, str) and cell.lstrip().startswith("[{") for cell in cells)


def read_messages(
    fields: dict[str, Any], names: Collection[str], origin: str, conversion: Conversion, strict: bool
) -> None:
    """Replace messages in these columns by canonical ones; text stays, unless it writes messages.

    Args:
        strict: leave lists that hold anything else, instead of refusing them: a shape of the user's own may read them.

    Raises:
        DataError: a message that cannot be read; names `origin` and the column.
    """
    written: dict[str, list[Any]] = {}
    for name in names:
        cell = plain(fields.get(name))
        if isinstance(cell, Mapping):
            cell = _as_list(cell)
        if isinstance(cell, list) and (not strict or (cell and all(map(looks_like_message, cell)))):
            fields[name] = conversation(cell, f"{origin}: {name}", conversion)
        elif isinstance(cell, str) and (messages := messages_in(cell, strict=name != "messages")) is not None:
            written[name] = messages
    # A completion may be JSON on purpose; beside a prompt that is written so too, it is a message.
    if "completion" in written and not ("prompt" in written or isinstance(fields.get("prompt"), list)):
        del written["completion"]
    columnar, conversion.columnar = conversion.columnar, False  # a columnar file adds no null inside a text
    for name, messages in written.items():
        conversion.note(JSON_MESSAGES)
        fields[name] = conversation(messages, f"{origin}: {name}", conversion)
    conversion.columnar = columnar


def is_conversation(cell: Any) -> TypeGuard[list[Message]]:
    """Whether a cell is a list of messages that were read, of which there is one."""
    return isinstance(cell, list) and bool(cell) and all(isinstance(each, Mapping) and "role" in each for each in cell)


def _as_list(cell: Mapping[str, Any]) -> Any:
    """A single message as a list of one, and messages that a columnar file holds key by key one after the other."""
    if looks_like_message(cell):
        return [cell]
    lengths = {len(column) if isinstance(column, list) else None for column in cell.values() if column is not None}
    if len(lengths) != 1 or None in lengths:
        return cell
    columns = {key: column for key, column in cell.items() if column is not None}
    return [dict(zip(columns, turn, strict=True)) for turn in zip(*columns.values(), strict=True)]


def ask_once(fields: dict[str, Any], answers: Sequence[str], conversion: Conversion) -> None:
    """Move a prompt that all answers repeat out of them, with the turns before it."""
    prompt = fields.get("prompt")
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    texts = [side.strip() for name in answers if isinstance(side := fields.get(name), str)]
    if isinstance(prompt, str) and texts and all(_continues(text, prompt.strip()) for text in texts):
        conversion.note(BEGINS)
    sides = [side for name in answers if is_conversation(side := fields.get(name))]
    if not is_conversation(asked) or not sides or "messages" in answers or len(sides) < len(answers):
        return
    ends = [_end_of_repeat(side, asked) for side in sides]
    openings = [side[:end] for side, end in zip(sides, ends, strict=True)]
    if not ends[0] or any(end != ends[0] for end in ends):
        return
    if not all(all(map(_same, opening, openings[0])) for opening in openings):
        return
    # Answers that hold more turns than the prompt hold earlier ones, which are a part of it.
    fields["prompt"] = prompt if ends[0] <= len(asked) else openings[0]
    fields |= {name: side[end:] for name, side, end in zip(answers, sides, ends, strict=True)}
    conversion.note(REPEATED)


def _end_of_repeat(answer: Sequence[Message], asked: Sequence[Message]) -> int:
    """The number of messages up to the first repetition of `asked` that something follows; 0 without one.

    An answer may also begin with the last turns of `asked` alone.
    """
    for start in range(len(answer) - len(asked)):
        if all(map(_same, answer[start : start + len(asked)], asked)):
            return start + len(asked)
    for count in range(min(len(asked), len(answer)) - 1, 0, -1):
        if asked[-1]["role"] == "user" and all(map(_same, answer[:count], asked[-count:])):
            return count
    return 0


def _continues(answer: str, prompt: str) -> bool:
    return _is_sentence(prompt) and len(answer) > len(prompt) and answer.startswith(prompt)


def _same(left: Message, right: Message) -> bool:
    return all((left.get(key) or "") == (right.get(key) or "") for key in ("role", "tool_calls")) and (
        normalize("NFC", left["content"]).strip() == normalize("NFC", right["content"]).strip()
    )


def add_system(fields: dict[str, Any], answers: Sequence[str], conversion: Conversion) -> None:
    """Put the text of a `system` column before the conversation, unless it has a system message."""
    system = fields.get("system")
    if not isinstance(system, str) or not system.strip():
        return
    names = [*answers] if "messages" in answers else ["prompt", *answers]
    lists = {name: fields[name] for name in names if is_conversation(fields.get(name))}
    own = {side[0]["content"].strip() for side in lists.values() if side[0]["role"] == "system"}
    if own:
        conversion.note(SYSTEM if own == {system.strip()} else TWO_SYSTEMS)
        return
    opening, prompt = [{"role": "system", "content": system}], fields.get("prompt")
    if "prompt" in names and isinstance(prompt, str):
        fields["prompt"] = [*opening, {"role": "user", "content": prompt}]
    elif "prompt" in lists:
        fields["prompt"] = [*opening, *lists["prompt"]]
    elif lists and len(lists) == len(answers):
        fields |= {name: [*opening, *side] for name, side in lists.items()}
    else:
        return
    conversion.note(SYSTEM)


def unread_columns(
    records: Iterable[Record], form: str, template: str, reads: Collection[str], shapes: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Columns, and keys of messages, that nothing reads: their number of records, and whether they hold new text.

    Args:
        records: the records of a recipe.
        form: `data.render`.
        template: source of the chat template, which may read keys of messages by name.
        reads: further columns that the recipe reads; EVERY for all.
        shapes: shape → its columns.

    Returns:
        By name (`note`, or `messages[].note`): {"records": 20, "text": True}.
    """
    unread: dict[str, dict[str, Any]] = {}
    if EVERY in reads:
        return unread
    chat = form == "chat"
    always = {*ALWAYS_READ, *reads, *([] if chat else _names_in_form(form))}
    words = set(WORD_OF_CODE.findall(template if chat else ""))
    for record in records:
        own = shapes[record.shape]
        known = {*always, *own, *_read_besides(record, chat)}
        cells = {name: cell for name, cell in record.fields.items() if name not in known and not _blank(cell)}
        cells |= _keys_of_messages(record, own, words)
        for name, cell in cells.items():
            counted = unread.setdefault(name, {"records": 0, "text": False})
            counted["records"] += 1
            counted["text"] = counted["text"] or _is_new_text(cell, record, known, chat)
    return unread


def notes_of(record: Record, form: str) -> list[str]:
    """The notes on a record that are true under this `data.render`: a format string names the columns that it reads."""
    if form == "chat":
        return [*record.notes]
    untrue = {SYSTEM, TWO_SYSTEMS, *([JOINED_INPUT] if "input" in _names_in_form(form) else [])}
    return [note for note in record.notes if note not in untrue]


def _names_in_form(form: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(form) if name]


def _read_besides(record: Record, chat: bool) -> Iterator[str]:
    """The columns that a record's own answers need, besides those of its shape."""
    if chat and record.shape != "text":
        yield "tools"
        if LEGACY_TOOLS in record.notes:
            yield "functions"
    if chat and (SYSTEM in record.notes or TWO_SYSTEMS in record.notes):
        yield "system"
    if record.shape not in ("messages", "text"):
        yield "prompt"
    if isinstance(record.fields.get("label"), bool) and record.shape in LABELLED:
        yield "label"
    if JOINED_INPUT in record.notes:
        yield "input"


def _keys_of_messages(record: Record, names: Sequence[str], words: Collection[str]) -> dict[str, Any]:
    """The keys of the record's messages that neither the canonical form nor the chat template knows."""
    unknown: dict[str, Any] = {}
    for name in dict.fromkeys(("prompt", *names)):
        messages = record.fields.get(name)
        for message in messages if isinstance(messages, list) else ():
            fields = message if isinstance(message, Mapping) else {}
            unknown |= {key: cell for key, cell in fields.items() if key not in KEYS and not _blank(cell)}
    return {f"messages[].{key}": cell for key, cell in unknown.items() if key not in words}


def _blank(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, list | dict) and not cell)


def _is_new_text(cell: Any, record: Record, known: Collection[str], chat: bool) -> bool:
    """Whether a cell holds a sentence that no column which is read holds too."""
    texts = [text.strip() for text in strings(cell) if _is_sentence(text)]
    if not texts:
        return False
    read = "\n".join(chain.from_iterable(_texts_read(record.fields.get(name), chat) for name in known))
    return any(text not in read for text in texts)


def _texts_read(cell: Any, chat: bool) -> Iterator[str]:
    """The texts of a column that is read; of messages the contents. Format strings take no system message."""
    for part in cell if isinstance(cell, list) else [cell]:
        if not (isinstance(part, Mapping) and "role" in part):
            yield from strings(part)
        elif chat or part["role"] != "system":
            yield from strings([part.get("content"), part.get("reasoning_content")])


def _is_sentence(text: str) -> bool:
    words = [word for word in WORD.findall(text[:2000]) if any(map(str.isalpha, word))]
    return len(words) >= WORDS_OF_TEXT


def strings(content: Any, keys: bool = True) -> Iterator[str]:
    """All texts in a cell, at any depth, and those of keys."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        for key, part in content.items():
            if keys:
                yield from strings(key)
            yield from strings(part, keys)
    elif isinstance(content, list | tuple):
        for element in content:
            yield from strings(element, keys)


def _listed(fields: Mapping[str, Any]) -> str:
    return ", ".join(str(name) for name in fields) or "none"
