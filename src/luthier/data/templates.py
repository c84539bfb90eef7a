"""From a record to text with proven answer spans: chat templates and format strings.

Templates mark the assistant's text in no reliable way, so Luthier assumes nothing about them. To locate an answer it
renders the conversation again with a unique word instead of the answer: the text before and after the word must be
the text around the answer in the full rendering. An answer that cannot be located so is context, or its record is
refused with the reason.
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
from luthier.records.columns import without_input
from luthier.types import Record

SENTINEL = "ZQANSWERQZ"

# Notes on a record; the doctor counts the records with each note.
ALTERED = "earlier answers that the chat template rewrites: context only, not trained"
UNCLOSED = "earlier answers without the template's end-of-turn text: their end is not trained"
SCAFFOLD = "answers after text of the template's own (such as an empty thinking block): context, not trained"
UNREASONED = "answers whose reasoning_content the template leaves out: only the rest is trained"
OPENING = "answers that do not continue the template's generation prompt: prompts leave its last text out"


@dataclass(frozen=True)
class Span:
    """Characters [start, end) that the model must write, among them `answer`, the text of the user."""

    start: int
    end: int
    answer: str


@dataclass(frozen=True)
class Rendered:
    """A record as text. `answer_start`: character at which the last answer begins; None for text without a prompt."""

    text: str
    spans: tuple[Span, ...]
    answer_start: int | None
    special_tokens: bool  # whether the tokenizer adds its own, such as BOS; templates write theirs as text
    close: bool  # whether the EOS token is appended as a target
    notes: tuple[str, ...] = ()


class ChatTemplate:
    """The chat template of a tokenizer.

    Raises:
        ModelError: the tokenizer has no template, or its template cannot render a question and an answer.
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
        # White space that the template writes between its generation prompt and an answer, which the model must write.
        between = before.removeprefix(self.text(probe[:1], None, answer_next=True))
        self.gap = between if between != before and not between.strip() else ""
        added_tokens = tokenizer.added_tokens_decoder.values()
        self.special = {token.content for token in added_tokens} | set(tokenizer.all_special_tokens)
        self.closing_id = self._closing_id()

    def text(self, messages: list[dict[str, Any]], tools: Any, answer_next: bool = False) -> str:
        """Render messages; `answer_next` adds the generation prompt, the template's text before an answer.

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
            wanted: whether the answer at this index of the messages is a target.

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
                    "the chat template rewrites the last answer, so its text does not hold the answer to learn.",
                    "Some templates drop thoughts or change case. Use a tokenizer whose template keeps the answer, or "
                    "a format string in `data.render`.",
                )
            if span is not None:
                spans.append(span)
        # The last answer is located even if it is no target: generation starts where it begins.
        final = spans[-1]
        kept = tuple(span for span in spans if span is not final or wanted(last))
        close = self.closing_id is None
        return Rendered(
            full[: final.end], kept, final.start, special_tokens=False, close=close, notes=tuple(dict.fromkeys(notes))
        )

    def _span(self, messages: list[dict[str, Any]], index: int, tools: Any, full: str) -> tuple[Span | None, list[str]]:
        """The span of the answer at `index` in `full`, with its end of turn (None if unproven), and notes."""
        sentinel = SENTINEL
        while sentinel in full:  # a user's text may hold the word
            sentinel += "Z"
        placeholder = {"role": "assistant", "content": sentinel}
        marked = self.text([*messages[:index], placeholder, *messages[index + 1 :]], tools)
        pieces = marked.split(sentinel)
        if len(pieces) != 2 or not full.endswith(pieces[1]):
            return None, [ALTERED]
        before, after = pieces
        # Templates refuse an empty conversation; all text before a first answer is its prompt.
        prompt = self.text(messages[:index], tools, answer_next=True) if index else before
        end = len(full) - len(after)
        located = self._start(before, prompt, full[:end], messages[index])
        if located is None:
            return None, [ALTERED]
        start, notes = located
        closing = self._closing_of(after)
        if self.closing and not closing:
            notes.append(UNCLOSED)
        if squeeze(messages[index].get("reasoning_content") or "") not in squeeze(full[:end]):
            notes.append(UNREASONED)
        return Span(start, end + len(closing), full[start:end]), notes

    def _start(
        self, before: str, prompt: str, written: str, message: Mapping[str, Any]
    ) -> tuple[int, list[str]] | None:
        """The character of `written` at which the model's part begins, and notes; None if unproven.

        Args:
            before: the text that precedes an answer of one word at this index.
            prompt: the text from which the template would let the answer be generated.
            written: the full rendering up to the end of the answer's text.
            message: the answer.
        """
        if written.startswith(before) and _is_message(written[len(before) :], message):
            if before.startswith(prompt) and before[len(prompt) :].strip():
                return len(before), [SCAFFOLD]
            if before.startswith(prompt):
                return len(prompt), []  # white space after the generation prompt is the model's to write
            gap = len(self.gap) if before.endswith(self.gap) else 0
            return len(before) - gap, [OPENING] if prompt.startswith(before) else []
        if written.startswith(prompt) and _is_message(written[len(prompt) :], message, preceding=prompt):
            return len(prompt), []
        # The answer begins with the same text as the template's own before it, such as the tag of a thought.
        shared = _common_start(before, written)
        return (len(shared), [OPENING]) if _is_message(written[len(shared) :], message, preceding=shared) else None

    def _closing_of(self, after: str) -> str:
        """The end-of-turn text at the start of `after`; within a conversation it may be shorter than at its end."""
        shared = _common_start(after, self.closing)
        if shared == self.closing:
            return shared
        ends = [shared.rfind(token) + len(token) for token in self.special if token in shared]
        return shared[: max(ends, default=0)]

    def _closing_id(self) -> int | None:
        """The special token that ends a turn; None if the closing text has none."""
        ids = self.tokenizer(self.closing, add_special_tokens=False)["input_ids"]
        for token, text in zip(ids, self.tokenizer.convert_ids_to_tokens(ids), strict=True):
            if text in self.special:
                return token
        return None


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


def squeeze(text: str, normalise: Callable[[str], str] | None = None) -> str:
    """Text without white space and in one Unicode form, which tokenizers and templates may change without harm."""
    if normalise is not None:
        text = normalise(text)
    return "".join(unicodedata.normalize("NFKC", text).replace("\u2581", "").split())


def _common_start(left: str, right: str) -> str:
    for index, (left_letter, right_letter) in enumerate(zip(left, right, strict=False)):
        if left_letter != right_letter:
            return left[:index]
    return left[: len(right)]


def _is_message(written: str, message: Mapping[str, Any], preceding: str = "") -> bool:
    """Whether `written` is this message, all of it, apart from white space.

    The first words of the message may be at the end of `preceding`, the text before `written`.
    """
    text, content = squeeze(written), squeeze(message.get("content") or "")
    reasoning = squeeze(message.get("reasoning_content") or "")
    calls = [call.get("function", call).get("name", "") for call in message.get("tool_calls") or []]
    # Templates write calls and thoughts in formats of their own: only their presence can be checked.
    if calls or (reasoning and reasoning in text):
        return content in text and all(squeeze(name) in text for name in calls)
    opening = content.removesuffix(text)
    return text != "" and content == opening + text and squeeze(preceding).endswith(opening)
