"""From a record to text with proven answer spans: chat templates and format strings."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from itertools import chain
from typing import Any

from luthier.chat.answers import Conversation, Proofs
from luthier.chat.spans import ALTERED, Rendered, Span
from luthier.chat.text import TemplateText
from luthier.data.shapes import last_answer, messages_of, plain_text, prompt_length
from luthier.errors import DataError, RecipeError
from luthier.records.columns import without_input
from luthier.types import Record


class ChatTemplate(TemplateText):
    """The chat template of a tokenizer.

    Luthier assumes nothing about the text that it writes. An answer that cannot be located with proof is context, or
    its record is refused with the reason.
    """

    def __init__(self, tokenizer: Any):
        super().__init__(tokenizer)
        self.proofs = Proofs()
        self.tells_time = "strftime_now" in str(tokenizer.chat_template)

    def render(self, record: Record, wanted: Callable[[int], bool]) -> Rendered:
        """The record's conversation up to its last answer, with the spans of all wanted answers.

        Args:
            record: of any shape but `text`.
            wanted: whether the answer at this index of the messages is a target.

        Raises:
            DataError: the template refuses the conversation or rewrites its last answer.
        """
        messages, tools = messages_of(record), tools_of(record)
        last = last_answer(messages)
        if last == len(messages):
            formed, notes = self.forms.conversation(messages)
            text = self.text(formed, tools, answer_next=True)
            return Rendered(text, (), len(text), special_tokens=False, close=False, notes=tuple(notes))
        conversation = Conversation(self, self.proofs, messages[: last + 1], tools)
        spans, notes = conversation.wanted(wanted)
        if self.tells_time and (not spans[last] or ALTERED in notes):
            # The second may have changed between two of the texts that are compared.
            conversation = Conversation(self, self.proofs, messages[: last + 1], tools)
            spans, notes = conversation.wanted(wanted)
        if not spans[last]:
            raise DataError(
                "the chat template rewrites the last answer, so its text does not hold the answer to learn.",
                "Some templates drop thoughts or calls, or change case. Use a tokenizer whose template keeps the "
                "answer, or a format string in `data.render`.",
            )
        kept = chain.from_iterable(spans[index] for index in spans if wanted(index))
        text, start = conversation.full[: spans[last][-1].end], spans[last][0].start
        close = self.closing_id is None
        return Rendered(text, tuple(kept), start, special_tokens=False, close=close, notes=tuple(dict.fromkeys(notes)))


class FormatString:
    """A format string such as "Question: {prompt} Answer: {completion}", for models without a template.

    The answer is everything from `{completion}` on, with the spaces before it: tokenizers join a space to the next
    word, so a prompt that ended in a space would end within a token of the training text.

    Raises:
        RecipeError: no format string, or one whose last column is neither `{completion}` nor `{text}`.
    """

    def __init__(self, form: str):
        try:
            pieces = list(string.Formatter().parse(form))
        except ValueError as error:
            raise RecipeError(f"data.render is no format string: {error}.", "Write { and } as {{ and }}.") from None
        names = [name for _, name, _, _ in pieces if name is not None]
        if any(spec or conversion for _, _, spec, conversion in pieces):
            raise RecipeError("data.render takes plain column names, as in {prompt}, without `:` or `!`.")
        if not names or names[-1] not in ("completion", "text") or names.count(names[-1]) != 1:
            raise RecipeError(
                "data.render must be `chat` or a format string whose last column is {completion} (or {text}).",
                'For example `render: "Question: {prompt}\\nAnswer: {completion}"`.',
            )
        self.form, self.pieces, self.target = form, pieces, names[-1]
        own = ("prompt", "completion") if self.target == "completion" else ("text",)
        self.columns = tuple(dict.fromkeys(name for name in names if name not in own))

    def render(self, record: Record, everything: bool) -> Rendered:
        """The record written into the format string; the span is the answer, or with `everything` the whole text."""
        values = self._values(record)
        parts, start = [], 0
        for literal, name, _, _ in self.pieces:
            parts.append(literal)
            if name is None:
                continue
            if name == self.target:
                start = len("".join(parts))
            if not isinstance(values.get(name), str | int | float):
                content = values.get(name)
                fault = "is empty" if content is None else f"holds {type(content).__name__} and no text"
                raise DataError(
                    f"data.render asks for the column `{name}`, which {fault if name in values else 'is missing'}."
                    f" Columns found: {', '.join(values)}.",
                    'Name another column in `data.render`, or write text into this one, "" where there is none.',
                )
            parts.append(str(values[name]))
        text, answer = "".join(parts), str(values[self.target])
        start -= len(text[:start]) - len(text[:start].rstrip(" "))
        has_prompt = self.target == "completion"
        span = Span(0 if everything or not has_prompt else start, len(text), answer)
        return Rendered(text, (span,), start if has_prompt else None, special_tokens=True, close=True)

    def texts(self, record: Record) -> list[str]:
        """The texts of the record that the form writes."""
        values = self._values(record)
        return [str(values[name]) for _, name, _, _ in self.pieces if name is not None]

    def _values(self, record: Record) -> dict[str, Any]:
        if record.shape == "text" or (self.target == "text" and isinstance(record.fields.get("text"), str)):
            return dict(record.fields)
        messages = messages_of(record)
        if isinstance(record.fields.get("system"), str) and messages[0]["role"] == "system":
            messages = messages[1:]  # from the column of that name, which the form may read
        roles = [message["role"] for message in messages]
        if roles != ["user", "assistant"]:
            raise DataError(
                f"a format string holds one question and one answer; this conversation has {', '.join(roles)}.",
                "Use a model with a chat template and `render: chat`.",
            )
        question, answer = (plain_text(message) for message in messages)
        if any(name == "input" for _, name, _, _ in self.pieces):  # the form writes it in a place of its own
            question = without_input(question, record)
        return {**record.fields, "prompt": question, "completion": answer}


def whole_text(record: Record) -> Rendered:
    """A `text` record unchanged: the whole text and its end are targets."""
    text = record.fields["text"]
    return Rendered(text, (Span(0, len(text), text),), None, special_tokens=True, close=True)


def tools_of(record: Record) -> Any:
    """The record's `tools` for the template; some files hold them as a JSON string.

    Raises:
        DataError: the column is neither a list nor JSON.
    """
    tools = record.fields.get("tools")
    if not isinstance(tools, str):
        return tools
    try:
        return json.loads(tools)
    except ValueError as error:
        raise DataError(f"`tools` is a string but not JSON: {error}.") from None


def first_target(record: Record, targets: str) -> int:
    """Index of the first message that may be a target, for `targets` auto, assistant or completion."""
    if targets == "assistant" or (targets == "auto" and record.shape == "messages"):
        return 0
    if record.shape == "prompt_completion":
        return prompt_length(record)
    return last_answer(messages_of(record))
