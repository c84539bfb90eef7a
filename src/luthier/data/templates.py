"""From a record to text whose answer spans are proven: chat templates and format strings.

Templates carry no reliable marks of what the assistant wrote, so nothing is assumed about them. Each
answer is located by rendering the same conversation again with a unique word in that answer's place:
the text before and after the word must be the very text around the answer in the full render. What
cannot be shown this way is context, or is refused with the reason.
"""

from __future__ import annotations

import json
import string
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.data.shapes import last_answer, messages_of, plain_text, prompt_length
from luthier.errors import DataError, ModelError, RecipeError
from luthier.types import Record

SENTINEL = "ZQANSWERQZ"
ALTERED = "earlier answers that the chat template rewrites: context only, not trained"
UNCLOSED = "earlier answers without the template's end-of-turn text: their end is not trained"
SCAFFOLD = "answers after text of the template's own (such as an empty thinking block): given, not trained"
OPENING = "answers that do not start as the template's generation prompt ends: that text is left out of prompts"


@dataclass(frozen=True)
class Span:
    """Characters [start, end) that the model must write; `answer` is the user's text among them."""

    start: int
    end: int
    answer: str


@dataclass(frozen=True)
class Rendered:
    """A record as text. `answer_start`: where the last answer begins (None: there is nothing to answer)."""

    text: str
    spans: tuple[Span, ...]
    answer_start: int | None
    special_tokens: bool  # let the tokenizer add its own, such as BOS; templates write theirs as text
    close: bool  # append the EOS token, as a target
    notes: tuple[str, ...] = ()


class ChatTemplate:
    """A tokenizer's own chat template.

    Raises:
        ModelError: there is no template, or it cannot render one question and answer.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                "The model's tokenizer has no chat template, so `render: chat` cannot write conversations.",
                'Use an instruct model or a format string: `data.render: "Question: {prompt}\\nAnswer: {completion}"`.',
            )
        probe = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": SENTINEL}]
        try:
            text = self.text(probe, None)
        except DataError as error:
            raise ModelError(f"The model's chat template fails on a question and an answer: {error.message}") from None
        if text.count(SENTINEL) != 1:
            raise ModelError(
                f"The model's chat template writes an answer {text.count(SENTINEL)} times, so it cannot be masked.",
                "Use a format string: `data.render`.",
            )
        before, after = text.split(SENTINEL)
        self.closing = after.rstrip()
        added = before.removeprefix(self.text(probe[:1], None, answer_next=True))
        self.gap = added if added != before and not added.strip() else ""
        self.closing_id = self._closing_id()

    def text(self, messages: list[dict[str, Any]], tools: Any, answer_next: bool = False) -> str:
        """Render messages; `answer_next` adds what the template puts before an answer.

        Raises:
            DataError: the template refuses the conversation, with its reason.
        """
        import jinja2

        try:
            return self.tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=answer_next
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"the chat template refuses the roles {roles}: {error}",
                "Put the conversation into the form this model knows (some know no system message, most want "
                "user and assistant in turn), or use a format string in `data.render`.",
            ) from None

    def render(self, record: Record, wanted: Callable[[int], bool]) -> Rendered:
        """The record's conversation up to its last answer, with the spans of all wanted answers.

        Args:
            record: of any shape but `text`.
            wanted: whether the answer at this index of the messages is to be learned.

        Raises:
            DataError: the template refuses the conversation or rewrites its last answer.
        """
        messages, tools = messages_of(record), tools_of(record)
        last = last_answer(messages)
        if last == len(messages):
            text = self.text(messages, tools, answer_next=True)
            return Rendered(text, (), len(text), special_tokens=False, close=False)
        full = self.text(messages, tools)
        spans, notes = [], []
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or not (index == last or wanted(index)):
                continue
            span, remarks = self._span(messages, index, tools, full)
            notes += remarks
            if span is None and index == last:
                raise DataError(
                    "the chat template rewrites the last answer, so what the model should learn is not in its text.",
                    "Compare the record with the template (`luthier check` shows the render), or use a format string.",
                )
            if span is not None:
                spans.append(span)
        final = spans[-1]
        kept = tuple(span for span in spans if span is not final or wanted(last))
        close = self.closing_id is None
        return Rendered(
            full[: final.end], kept, final.start, special_tokens=False, close=close, notes=tuple(dict.fromkeys(notes))
        )

    def _span(self, messages: list[dict[str, Any]], index: int, tools: Any, full: str) -> tuple[Span | None, list[str]]:
        sentinel = SENTINEL
        while sentinel in full:
            sentinel += "Z"
        stand_in = {"role": "assistant", "content": sentinel}
        marked = self.text([*messages[:index], stand_in, *messages[index + 1 :]], tools)
        around = marked.split(sentinel)
        if len(around) != 2 or not full.endswith(around[1]):
            return None, [ALTERED]
        before, after = around
        end = len(full) - len(after)
        # Templates refuse an empty conversation; whatever stands before a first answer is its prompt.
        prompt = self.text(messages[:index], tools, answer_next=True) if index else before
        notes = []
        if full.startswith(before) and end >= len(before) and _says(full[len(before) : end], messages[index]):
            if before.startswith(prompt) and before[len(prompt) :].strip():
                notes.append(SCAFFOLD)
                start = len(before)
            elif before.startswith(prompt):
                start = len(prompt)  # white space after the generation prompt is the model's to write
            else:
                start = len(before) - (len(self.gap) if before.endswith(self.gap) else 0)
                if prompt.startswith(before):
                    notes.append(OPENING)
        elif full.startswith(prompt) and end >= len(prompt) and _says(full[len(prompt) : end], messages[index]):
            start = len(prompt)
        else:
            return None, [ALTERED]
        if not after.startswith(self.closing):
            return Span(start, end, full[start:end]), [*notes, UNCLOSED]
        return Span(start, end + len(self.closing), full[start:end]), notes

    def _closing_id(self) -> int | None:
        """The token that ends a turn, or None when the closing text is none or is no special token."""
        ids = self.tokenizer(self.closing, add_special_tokens=False)["input_ids"]
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        found = [token for token in ids if token in special]
        return found[0] if found else None


class FormatString:
    """A format string such as "Question: {prompt} Answer: {completion}", for models without a template.

    Everything from `{completion}` on is the answer, with the spaces before it: tokenizers join a space
    to the next word, so a prompt that ended in one would be cut where no training text is cut.

    Raises:
        RecipeError: not a format string, or one without `{completion}` or `{text}` at its end.
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
        """The record in the form; the answer is the target, or `everything`."""
        values = self._values(record)
        parts, start = [], 0
        for literal, name, _, _ in self.pieces:
            parts.append(literal)
            if name is None:
                continue
            if name == self.target:
                start = len("".join(parts))
            if not isinstance(values.get(name), str | int | float):
                found = ", ".join(values)
                raise DataError(f"data.render asks for the column `{name}`, which is not text. Columns found: {found}.")
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
    """A `text` record as it stands: all of it is to be learned, and where it ends."""
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
    """Index of the first message whose answer may be learned, for `targets` auto, assistant or completion."""
    if targets == "assistant" or (targets == "auto" and record.shape == "messages"):
        return 0
    if record.shape == "prompt_completion":
        return prompt_length(record)
    return last_answer(messages_of(record))


def squeeze(text: str, normalise: Callable[[str], str] | None = None) -> str:
    """Text without what tokenizers and templates may change harmlessly: white space and Unicode forms."""
    if normalise is not None:
        text = normalise(text)
    return "".join(unicodedata.normalize("NFKC", text).replace("\u2581", "").split())


def _says(written: str, message: Mapping[str, Any]) -> bool:
    """Whether the template wrote this message, and all of it, but for white space."""
    found, content = squeeze(written), squeeze(message.get("content") or "")
    reasoning = squeeze(message.get("reasoning_content") or "")
    calls = [call.get("function", call).get("name", "") for call in message.get("tool_calls") or []]
    if not reasoning and not calls:
        return found == content
    return content in found and reasoning in found and all(squeeze(name) in found for name in calls)
