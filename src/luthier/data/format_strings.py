"""From a record to text through a format string, or unchanged."""

from __future__ import annotations

import string
from typing import Any

from luthier.data.shapes import messages_of, plain_text
from luthier.data.spans import Rendered, Span
from luthier.errors import DataError, RecipeError
from luthier.types import Record


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
                columns = ", ".join(values)
                raise DataError(
                    f"data.render asks for the column `{name}`, which is not text. Columns found: {columns}."
                )
            parts.append(str(values[name]))
        text, answer = "".join(parts), str(values[self.target])
        start -= len(text[:start]) - len(text[:start].rstrip(" "))
        has_prompt = self.target == "completion"
        span = Span(0 if everything or not has_prompt else start, len(text), answer)
        return Rendered(text, (span,), start if has_prompt else None, special_tokens=True, close=True)

    def _values(self, record: Record) -> dict[str, Any]:
        if record.shape == "text" or (self.target == "text" and isinstance(record.fields.get("text"), str)):
            return dict(record.fields)
        messages = messages_of(record)
        roles = [message["role"] for message in messages]
        if roles != ["user", "assistant"]:
            raise DataError(
                f"a format string holds one question and one answer; this conversation has {', '.join(roles)}.",
                "Use a model with a chat template and `render: chat`.",
            )
        question, answer = (plain_text(message) for message in messages)
        return {**record.fields, "prompt": question, "completion": answer}


def whole_text(record: Record) -> Rendered:
    """A `text` record unchanged: the whole text and its end are targets."""
    text = record.fields["text"]
    return Rendered(text, (Span(0, len(text), text),), None, special_tokens=True, close=True)
