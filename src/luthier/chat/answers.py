"""Where the answers of a conversation stand in the text that a chat template writes of it.

A template marks the assistant's text in no reliable way. To locate an answer, the conversation is rendered again with
unique words instead of all that the assistant wrote in this turn: the text before the first and after the last of them
must be the text around the answer. An answer with calls or thoughts has template's text within it; this holds nothing
of other messages if it stays the same when all other messages are replaced as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from luthier.chat.forms import read_arguments
from luthier.chat.spans import (
    ALTERED,
    EMPTY,
    INDENTED,
    MINGLED,
    OPENING,
    PYTHON,
    SCAFFOLD,
    UNCALLED,
    UNCLOSED,
    UNREASONED,
    UNSPOKEN,
    Span,
    border,
    common_start,
    squeeze,
)
from luthier.chat.text import SENTINEL, TemplateText
from luthier.errors import DataError

Spans = list[Span]


class Proofs:
    """What was proven of a template while earlier conversations were rendered."""

    def __init__(self) -> None:
        self.inner: set[str] = set()  # text from the first to the last target that holds nothing of other messages
        self.closings: dict[tuple[Any, ...], str] = {}  # parts of an answer → text behind them at a conversation's end
        self.scaffolds: dict[str, int] = {}  # text before the first of an answer's parts → how much no model writes


class Conversation:
    """A conversation, its text, and the spans of its answers.

    Args:
        template: the chat template.
        proofs: of this template.
        messages: up to the last answer, in the canonical form.
        tools: the schemas that go with it.

    Raises:
        DataError: the template refuses the conversation.
    """

    def __init__(self, template: TemplateText, proofs: Proofs, messages: Sequence[Mapping[str, Any]], tools: Any):
        self.template, self.proofs, self.tools = template, proofs, tools
        self.messages = messages
        self.formed, self.notes = template.forms.conversation(messages)
        self.full = template.text(self.formed, tools)

    def prompt(self, index: int) -> str | None:
        """The text from which the template would let message `index` be generated; None if it refuses to."""
        if index == 0:
            return None  # templates refuse an empty conversation
        try:
            return self.template.text(self.formed[:index], self.tools, answer_next=True)
        except DataError:
            return None

    def wanted(self, wanted: Callable[[int], bool]) -> tuple[dict[int, Spans], list[str]]:
        """The spans of all wanted answers and of the last one, by index, and notes.

        The last answer is located even if it is no target: generation starts where it begins.
        """
        spans: dict[int, Spans] = {}
        notes = [*self.notes]
        for index, message in enumerate(self.messages):
            if message["role"] == "assistant" and (index == len(self.messages) - 1 or wanted(index)):
                spans[index], remarks = self.spans(index)
                notes += remarks
        return spans, notes

    def spans(self, index: int) -> tuple[Spans, list[str]]:
        """The spans of the answer at `index`, with its end of turn, and notes. No spans: nothing is proven."""
        message = self.messages[index]
        if not _wrote(message):
            return [], [EMPTY]
        if message.get("tool_calls") or message.get("reasoning_content"):
            spans, notes = self._parts(index)
        else:
            spans, notes = self._text(index)
        content = message.get("content") or ""
        lead = content[: len(content) - len(content.lstrip())].rsplit("\n", 1)[-1]
        if lead and spans and lead + content.lstrip()[:40] not in self.full[spans[-1].start : spans[-1].end]:
            notes.append(INDENTED)
        return spans, notes

    @cached_property
    def sentinel(self) -> str:
        """A word that the text does not hold."""
        sentinel = SENTINEL
        while sentinel in self.full:  # a user's text may hold the word
            sentinel += "Z"
        return sentinel

    def _replaced(self, index: int, message: Mapping[str, Any], count: int | None = None) -> str:
        """The text with another message at `index`, of the first `count` messages."""
        return self.template.text([*self.formed[:index], dict(message), *self.formed[index + 1 : count]], self.tools)

    def _text(self, index: int) -> tuple[Spans, list[str]]:
        """The span of an answer that is text alone."""
        message, full = self.messages[index], self.full
        marked = self._replaced(index, {**self.formed[index], "content": self.sentinel})
        pieces = marked.split(self.sentinel)
        if len(pieces) != 2 or not full.endswith(pieces[1]):
            return [], [ALTERED]
        before, after = pieces
        prompt = self.prompt(index)
        prompt = before if prompt is None else prompt
        end = len(full) - len(after)
        located = self._start(before, prompt, full[:end], message)
        if located is None:
            return [], [ALTERED]
        start, notes = located
        closing = self.template.closing_of(after)
        if self._unclosed(after, closing, index):
            notes.append(UNCLOSED)
        return [Span(start, end + len(closing), full[start:end])], notes

    def _unclosed(self, after: str, closing: str, index: int) -> bool:
        """Whether an answer ends in no end of turn, although the template has one or the next turn begins with one."""
        template = self.template
        if template.ends(closing) or (template.closing and closing.endswith(template.closing)):
            return False  # text of a call may stand before the end of turn
        if template.closing or index == len(self.messages) - 1:
            return bool(template.closing)
        return after.lstrip().startswith(tuple(template.special))

    def _start(
        self, before: str, prompt: str, written: str, message: Mapping[str, Any]
    ) -> tuple[int, list[str]] | None:
        """The character of `written` at which the model's part begins, and notes; None if unproven.

        Args:
            before: the text that precedes an answer of one word at this index.
            prompt: the text from which the template would let the answer be generated.
            written: the full rendering up to the end of the answer's text.
            message: the answer, which is text alone.
        """
        continued = written.startswith(prompt) and _is_text(written[len(prompt) :], message, preceding=prompt)
        if continued and prompt.startswith(before):
            return len(prompt), []
        if written.startswith(before) and _is_text(written[len(before) :], message):
            if before.startswith(prompt) and before[len(prompt) :].strip():
                return len(before), [SCAFFOLD]
            if before.startswith(prompt):
                return len(prompt), []  # white space after the generation prompt is the model's to write
            gap = len(self.template.gap) if before.endswith(self.template.gap) else 0
            return len(before) - gap, [OPENING] if prompt.startswith(before) else []
        if continued:
            return len(prompt), []
        # The answer begins with the same text as the template's own before it, such as the tag of a thought.
        shared = common_start(before, written)
        return (len(shared), [OPENING]) if _is_text(written[len(shared) :], message, preceding=shared) else None

    # An answer of several parts: text, thoughts, calls.

    def _parts(self, index: int) -> tuple[Spans, list[str]]:
        """The spans of an answer that holds calls or thoughts: one, or two around another message's text."""
        full, standin = self.full, self._standin(index)
        marked = self._replaced(index, standin)
        borders = _around(marked, self._words)
        if borders is None:
            return [], [UNCALLED if self.messages[index].get("tool_calls") else ALTERED]
        before, after = marked[: borders[0]], marked[borders[1] :]
        first = len(common_start(before, full))
        end = len(full) - len(_common_end(after, full))
        if end < first:
            return [], [ALTERED]
        located = self._beginning(index, marked, before, first)
        closing = self._end(index, standin, after, end)
        if located is None or closing is None:
            return [], [ALTERED]
        start, notes = located
        stop = borders[1] + len(after) - (len(full) - end) + len(closing)
        spans = [Span(start, end + len(closing), full[start:end])]
        if not self._own(index, standin, marked[start:stop], (borders[0] - start, stop - borders[1])):
            spans = self._halves(index, start, end, closing)
            if not spans:
                return [], [MINGLED]
        lost = self._lost(index, " ".join(full[span.start : span.end] for span in spans), marked)
        if lost & {ALTERED, UNCALLED}:
            return [], sorted(lost)
        if self._unclosed(full[end:], closing, index):
            notes.append(UNCLOSED)
        return spans, [*notes, *sorted(lost)]

    @cached_property
    def _words(self) -> tuple[str, ...]:
        """Words for text, thoughts, the key and the number of an argument, which the text does not hold."""
        text, number = self.sentinel, 7091
        while any(text.replace("ANSWER", part) in self.full for part in ("THOUGHT", "KEY")):
            text += "Z"
        while str(number) in self.full:
            number += 7
        return text, text.replace("ANSWER", "THOUGHT"), text.replace("ANSWER", "KEY"), str(number)

    def _standin(self, index: int) -> dict[str, Any]:
        """The message with other text, thoughts and arguments, in the same form."""
        text, thoughts, key, number = self._words
        formed = dict(self.formed[index])
        if (formed.get("content") or "").strip():
            formed["content"] = text
        name = self.template.forms.thoughts if self.messages[index].get("reasoning_content") else None
        if name is not None:
            formed[name] = thoughts
        if calls := formed.get("tool_calls"):
            as_text = self.template.forms.calls[0]
            arguments = json.dumps({key: int(number)}) if as_text else {key: int(number)}
            formed["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": arguments}} for call in calls
            ]
        return formed

    def _beginning(self, index: int, marked: str, before: str, first: int) -> tuple[int, list[str]] | None:
        """The character of the text at which the model's part begins, and notes; None if unproven.

        Args:
            index: of the message.
            marked: the text with words for the message's parts.
            before: the text before the first of these words.
            first: how much of `before` the full text begins with.
        """
        full, prompt = self.full, self.prompt(index)
        if prompt is not None and full.startswith(prompt) and len(prompt) <= first:
            between = marked[len(prompt) : len(before)]
            if not between.strip():
                return len(prompt), []
            if between not in self.proofs.scaffolds:
                plain = self._before_text(index) or ""
                own = plain.startswith(prompt) and before.startswith(plain) and plain[len(prompt) :].strip()
                self.proofs.scaffolds[between] = len(plain) - len(prompt) if own else 0
            scaffold = self.proofs.scaffolds[between]
            return len(prompt) + scaffold, [SCAFFOLD] if scaffold else []
        if prompt is not None and not prompt[len(common_start(prompt, full)) :].strip():
            return len(common_start(prompt, full)), [OPENING]
        plain = self._before_text(index)
        if plain is None:
            return None
        shared = common_start(plain, full)
        if len(shared) < len(plain):
            shared = shared[: border(shared, (plain[len(shared) :], full[len(shared) :]), self.template.special)]
        if len(shared) > first:
            return None
        if prompt is not None and prompt.startswith(shared):
            return len(shared), [OPENING]
        gap = len(self.template.gap) if shared.endswith(self.template.gap) else 0
        return len(shared) - gap, []

    def _before_text(self, index: int) -> str | None:
        """The text before an answer of one word at this index; None if the template refuses one here."""
        word = {"role": "assistant", "content": self.sentinel}
        following = self.formed[index + 1 :]
        asked = (position for position, message in enumerate(following) if message["role"] == "user")
        # A tool's answer behind an answer without calls is refused: the exchange with the tools is left out.
        ways = (following, following[next(asked, len(following)) :], [])
        texts = []
        for later in ways:
            try:
                pieces = self.template.text([*self.formed[:index], word, *later], self.tools).split(self.sentinel)
            except DataError:
                continue
            if len(pieces) == 2:
                texts.append(pieces[0])
            if later is following and texts:
                break
        return max(texts, key=lambda text: len(common_start(text, self.full)), default=None)

    def _end(self, index: int, standin: dict[str, Any], after: str, end: int) -> str | None:
        """The end of turn at the character `end`; None if unproven."""
        full, header = self.full, self.template.header
        if index == len(self.messages) - 1:
            return full[end:].rstrip().removesuffix(header).rstrip()
        if not full.endswith(after):
            # Without arguments, a call is written otherwise: what the shorter conversation ends with ends it here.
            shared = len(common_start(full, self.template.text(self.formed[: index + 1], self.tools).rstrip()))
            return full[end:shared] if shared >= end else None
        parts = (len(standin.get("tool_calls") or ()), bool(standin.get("content")), len(standin))
        whole = self.proofs.closings.get(parts)
        if whole is None or not after.startswith(whole):
            marked = self._replaced(index, standin, index + 1)
            borders = _around(marked, self._words)
            if borders is None:
                return None
            whole = marked[borders[1] :].rstrip().removesuffix(header).rstrip()
            self.proofs.closings[parts] = whole
        return self.template.closing_of(after, whole)

    def _own(self, index: int, standin: dict[str, Any], inner: str, sides: tuple[int, int]) -> bool:
        """Whether `inner`, from the first target to the last, stays the same if all other messages are replaced.

        Args:
            index: of the message.
            standin: the message with other parts.
            inner: the text that holds these parts.
            sides: letters of `inner` before the first part and behind the last.
        """
        if inner in self.proofs.inner:
            return True
        others = [*self._others(index, standin)]
        try:
            marked = self.template.text(others, _other_tools(self.tools, self._word("S")))
        except DataError:
            return False
        borders = _around(marked, self._words)
        if borders is None or marked[borders[0] - sides[0] : borders[1] + sides[1]] != inner:
            return False
        self.proofs.inner.add(inner)
        return True

    def _word(self, name: str | int) -> str:
        """A word for another message, which is no part of the words for this one."""
        return f"{self.sentinel.replace('Q', 'X')}{name}"

    def _others(self, index: int, standin: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The conversation with other text in all messages, and the stand-in at `index`."""
        for position, message in enumerate(self.formed):
            if position == index:
                yield standin
                continue
            word = self._word(position)
            other = dict(message)
            if other.get("content"):
                other["content"] = word
            if self.messages[position].get("reasoning_content"):
                other[self.template.forms.thoughts] = word
            if calls := other.get("tool_calls"):
                arguments = json.dumps({word: word}) if self.template.forms.calls[0] else {word: word}
                other["tool_calls"] = [
                    {**call, "function": {**call["function"], "arguments": arguments}} for call in calls
                ]
            yield other

    def _halves(self, index: int, start: int, end: int, closing: str) -> Spans:
        """Two spans around the text of other messages: the calls, and the answer's text behind it. None if unproven."""
        full, content = self.full, (self.messages[index].get("content") or "").strip()
        alone = self.template.text(self.formed[: index + 1], self.tools)
        shared = common_start(full, alone)
        stop = border(shared, (full[len(shared) :], alone[len(shared) :]), self.template.special)
        later = end - len(content)
        if not content:
            return [Span(start, stop, full[start:stop].rstrip())] if start < stop < end else []
        if not start < stop < later or full[later:end] != content:
            return []
        return [Span(start, stop, full[start:stop].rstrip()), Span(later, end + len(closing), content)]

    def _lost(self, index: int, written: str, marked: str) -> set[str]:
        """Notes on parts of the message that the text of its spans does not hold.

        Args:
            index: of the message.
            written: the text of the spans.
            marked: the text with words for the message's parts.
        """
        message, text = self.messages[index], squeeze(written)
        spoken, thoughts, key, _ = (word in marked for word in self._words)
        lost = set()
        if squeeze(message.get("content") or "") not in text:
            lost.add(UNSPOKEN if message.get("tool_calls") and not spoken else ALTERED)
        if squeeze(message.get("reasoning_content") or "") not in text:
            lost.add(ALTERED if thoughts else UNREASONED)
        for call in self.formed[index].get("tool_calls") or []:
            arguments = read_arguments(call["function"].get("arguments"))
            if not all(_holds(text, word) for word in (call["function"].get("name", ""), *_words(arguments))):
                lost.add(ALTERED if key else UNCALLED)
            if any(_as_python(text, inner) for inner in _inner(arguments)):
                lost.add(PYTHON)
        return lost


def _wrote(message: Mapping[str, Any]) -> bool:
    """Whether the assistant wrote anything."""
    parts = (message.get("content"), message.get("reasoning_content"))
    return bool(message.get("tool_calls")) or any((part or "").strip() for part in parts)


def _around(text: str, words: Sequence[str]) -> tuple[int, int] | None:
    """Where the first of these words begins and the last ends; None if the text holds none."""
    spots = [(text.find(word), text.rfind(word) + len(word)) for word in words if word in text]
    return (min(start for start, _ in spots), max(end for _, end in spots)) if spots else None


def _common_end(left: str, right: str) -> str:
    """The longest text with which both end."""
    if right.endswith(left):
        return left
    return common_start(left[::-1], right[::-1])[::-1]


def _other_tools(tools: Any, word: str) -> Any:
    """The schemas of tools with other descriptions and parameters."""
    if not isinstance(tools, list):
        return tools
    return [_other_tool(tool, word) for tool in tools]


def _other_tool(tool: Any, word: str) -> Any:
    if not isinstance(tool, Mapping) or not isinstance(tool.get("function"), Mapping):
        return tool
    parameters = {"type": "object", "properties": {word: {"type": "string", "description": word}}, "required": []}
    return {**tool, "function": {**tool["function"], "description": word, "parameters": parameters}}


def _words(content: Any) -> Iterator[str]:
    """The keys, texts and whole numbers within the arguments of a call."""
    if isinstance(content, Mapping):
        for key, inner in content.items():
            yield key
            yield from _words(inner)
    elif isinstance(content, list):
        for inner in content:
            yield from _words(inner)
    elif isinstance(content, str | int) and not isinstance(content, bool):
        yield str(content)


def _inner(arguments: Any) -> Iterator[Any]:
    """The values of arguments that Python writes otherwise than JSON."""
    for inner in arguments.values() if isinstance(arguments, Mapping) else ():
        if isinstance(inner, Mapping | list | bool) and repr(inner) != json.dumps(inner, ensure_ascii=False):
            yield inner


def _as_python(text: str, inner: Any) -> bool:
    return squeeze(repr(inner)) in text and squeeze(json.dumps(inner, ensure_ascii=False)) not in text


def _holds(text: str, word: str) -> bool:
    """Whether a squeezed text holds a word, as it is or as JSON writes it."""
    ways = (word, json.dumps(word, ensure_ascii=False)[1:-1], json.dumps(word)[1:-1])
    return any(squeeze(way) in text for way in ways)


def _is_text(written: str, message: Mapping[str, Any], preceding: str = "") -> bool:
    """Whether `written` is this message, all of it, apart from white space.

    The first words of the message may be at the end of `preceding`, the text before `written`.
    """
    text, content = squeeze(written), squeeze(message.get("content") or "")
    opening = content.removesuffix(text)
    return text != "" and content == opening + text and squeeze(preceding).endswith(opening)
