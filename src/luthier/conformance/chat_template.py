"""Whether the masks of a chat template are right, judged without the code that makes them.

Conversations of several kinds hold marker words that occur nowhere else. The template itself is asked, through
transformers, for the texts that it writes of them; a row is right if its text is one of these, all marker words of the
assistant that stand in it are targets, no other marker word is, and each turn's targets begin behind the generation
prompt and end where the turn ends.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product, takewhile
from pathlib import Path
from typing import Any, Literal

from luthier.conformance.byte_tokenizer import tokenizer_for
from luthier.data.render import Renderer
from luthier.data.shapes import make_record
from luthier.errors import LuthierError

Outcome = Literal["right", "context", "refused", "wrong", "not written"]
OUTCOMES: tuple[Outcome, ...] = ("right", "context", "refused", "wrong", "not written")
"""`context`: an answer that the template writes is no target, and a note says so. `not written`: the template does not
write what this kind is about, such as tool calls, whatever form it gets them in."""

MARK = re.compile(r"xq[a-z]+")
CALLED, KEY = "xqpaint", "xqcolour"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": CALLED,
            "description": "Has the xqdeed of painting.",
            "parameters": {
                "type": "object",
                "properties": {KEY: {"type": "string", "description": "The xqhue of it."}},
                "required": [KEY],
            },
        },
    }
]


@dataclass(frozen=True)
class TemplateVerdict:
    """How one kind of conversation fares under a template; `reason` is empty if it is right."""

    kind: str
    outcome: Outcome
    reason: str = ""


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str | None, *calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, **more}
    return {**message, "tool_calls": list(calls)} if calls else message


def call(colour: str, name: str = "call00001") -> dict[str, Any]:
    return {"type": "function", "id": name, "function": {"name": CALLED, "arguments": {KEY: colour}}}


def tool(text: str, name: str = "call00001") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": name, "name": CALLED, "content": text}


ASKED, TOLD = user("Is the xqbarn near a xqcove?"), answer("No, the xqdune is near a xqfern.")
ASKED_AGAIN, TOLD_AGAIN = user("And the xqgate, or xqhill?"), answer("The xqiris is near a xqjetty.")
PAINT, PAINTED = user("Paint the xqkiln like a xqlake."), answer("The xqmoor is like a xqnest.")
REPLY = tool("Paint of xqoven is xqpond.")


def conversations() -> Mapping[str, list[dict[str, Any]]]:
    """Kind → messages in the canonical form, apart from `string arguments`, where arguments are JSON as text."""
    red = call("xqquay xqrose")
    as_text = {**red, "function": {"name": CALLED, "arguments": json.dumps(red["function"]["arguments"])}}
    thoughtful = answer("The xqiris is near a xqjetty.", reasoning_content="Perhaps the xqsalt or xqtern.")
    return {
        "single": [ASKED, TOLD],
        "multi": [ASKED, TOLD, ASKED_AGAIN, TOLD_AGAIN],
        "system": [{"role": "system", "content": "Be as xquran as xqveil."}, ASKED, TOLD, ASKED_AGAIN, TOLD_AGAIN],
        "thoughts": [ASKED, TOLD, ASKED_AGAIN, thoughtful],
        "tools": [PAINT, answer(None, red), REPLY, PAINTED, ASKED, TOLD],
        "string arguments": [PAINT, answer(None, as_text), REPLY, PAINTED, ASKED, TOLD],
        "ends in a call": [ASKED, TOLD, PAINT, answer(None, red)],
        "text and call": [PAINT, answer("First the xqwand, a xqyard.", red), REPLY, PAINTED],
        "two calls": [
            PAINT,
            answer(None, red, call("xqzinc xqzone", "call00002")),
            REPLY,
            tool("Paint of xqalga is xqaloe.", "call00002"),
            PAINTED,
        ],
        "thoughts and call": [
            PAINT,
            answer(None, red, reasoning_content="Perhaps the xqsalt or xqtern."),
            REPLY,
            PAINTED,
        ],
        "empty turn": [ASKED, answer(""), ASKED_AGAIN, TOLD_AGAIN],
    }


Rows = Callable[[list[dict[str, Any]], Any], tuple[list[int], list[float], tuple[str, ...]]]
"""Makes of messages and tools the ids [T], weights [T] and notes of a row. Raises LuthierError to refuse them."""


def check_template(tokenizer: Any) -> list[TemplateVerdict]:
    """A verdict for each kind of conversation under the chat template of a tokenizer, which must be a fast one."""
    renderer = Renderer(tokenizer)

    def rows(messages: list[dict[str, Any]], tools: Any) -> tuple[list[int], list[float], tuple[str, ...]]:
        rendering = renderer.explain(make_record({"messages": messages, "tools": tools}, {}, "the conversation"))
        row = rendering.row
        return row.ids.tolist(), row.streams["weights"].values.tolist(), rendering.notes

    return [check_conversation(tokenizer, kind, messages, rows) for kind, messages in conversations().items()]


def check_folder(folder: Path) -> Iterator[tuple[str, list[TemplateVerdict]]]:
    """The name and the verdicts of each template, the .jinja files of a folder, under a tokenizer made for its text."""
    for path in sorted(folder.glob("*.jinja")):
        try:
            yield path.stem, check_template(tokenizer_for(path.read_text(encoding="utf-8")))
        except LuthierError as error:
            yield path.stem, [TemplateVerdict(kind, "not written", error.message) for kind in conversations()]


def counted(results: Mapping[str, Sequence[TemplateVerdict]]) -> list[str]:
    """A table of kinds by outcomes: the number of templates."""
    width = max(map(len, conversations()))
    lines = [f"{'':{width}}  " + "  ".join(OUTCOMES)]
    for kind in conversations():
        outcomes = Counter(
            verdict.outcome for verdicts in results.values() for verdict in verdicts if verdict.kind == kind
        )
        lines.append(f"{kind:{width}}  " + "  ".join(f"{outcomes[name]:>{len(name)}}" for name in OUTCOMES))
    return lines


def check_conversation(tokenizer: Any, kind: str, messages: list[dict[str, Any]], rows: Rows) -> TemplateVerdict:
    """The verdict for one conversation, of a kind that `conversations` names or of the caller's own."""
    tools = TOOLS if any(message.get("tool_calls") for message in messages) else None
    writings = [*_writings(tokenizer, messages, tools)]
    wanted = set().union(*(_marks(message) for message in messages if message["role"] == "assistant"))
    marks = [wanted & set(MARK.findall(writing.text)) for writing in writings]
    best = max(map(len, marks), default=0)
    writings = [writing for writing, written in zip(writings, marks, strict=True) if len(written) == best]
    complete = bool(writings) and _essential(messages) <= set(MARK.findall(writings[0].text))
    try:
        ids, weights, notes = rows(messages, tools)
    except LuthierError as error:
        return TemplateVerdict(kind, "refused" if complete else "not written", error.message)
    outcome, reason = judge(tokenizer, ids, weights, messages, writings, bool(notes))
    if outcome != "wrong" and not complete:
        return TemplateVerdict(kind, "not written", "; ".join(notes))
    return TemplateVerdict(kind, outcome, f"{reason}: {'; '.join(notes)}" if outcome == "context" else reason)


def _essential(messages: Sequence[Mapping[str, Any]]) -> set[str]:
    """The marker words without which a text does not hold what this kind is about."""
    marks: set[str] = set()
    for message in messages:
        if message["role"] != "assistant":
            continue
        if not message.get("tool_calls"):
            marks |= set(MARK.findall(message.get("content") or ""))
        marks |= set(MARK.findall(message.get("reasoning_content") or ""))
        marks |= _argument_marks(message)
    return marks


def _argument_marks(message: Mapping[str, Any]) -> set[str]:
    calls = [call["function"]["arguments"] for call in message.get("tool_calls") or []]
    return set(MARK.findall(json.dumps(calls))) - {KEY}


def _marks(message: Mapping[str, Any]) -> set[str]:
    """The marker words of a message alone, without the names that the schema of a tool repeats."""
    text = f"{message.get('content') or ''} {message.get('reasoning_content') or ''}"
    return set(MARK.findall(text)) | _argument_marks(message)


@dataclass(frozen=True)
class Writing:
    """A text that the template writes of a conversation in a form that it understands."""

    tokenizer: Any
    messages: list[dict[str, Any]]
    tools: Any
    text: str

    def until(self, count: int, prompt: bool) -> str | None:
        """The text of the first `count` messages, `prompt` adds the generation prompt; None if it is refused."""
        return _written(self.tokenizer, self.messages[:count], self.tools, prompt)

    def before_text(self, count: int) -> str | None:
        """The text before an answer of one word behind `count` messages; None if it is refused."""
        spoken = [*self.messages[:count], {"role": "assistant", "content": "xqplain"}]
        text = _written(self.tokenizer, spoken, self.tools, False)
        return text and text.split("xqplain")[0]


def _writings(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Any) -> Iterator[Writing]:
    thinks = any(message.get("reasoning_content") for message in messages)
    names = ("reasoning_content", "thinking", "reasoning") if thinks else ("reasoning_content",)
    forms = product((False, True) if tools else (False,), names, (None, "") if tools else ("",), (False, True))
    texts = []
    for (as_text, thoughts, empty, in_parts), schemas in product(forms, (tools,) if tools else (None, [])):
        formed = [_formed(message, as_text, thoughts, empty, in_parts) for message in messages]
        text = _written(tokenizer, formed, schemas, False)
        # JSON within JSON, Python's form of a mapping, and None as a word are nothing that a program could read.
        if text is None or text in texts or re.search(rf"\\\"{KEY}|\{{'({KEY}|type)|\bNone\b", text):
            continue
        texts.append(text)
        yield Writing(tokenizer, formed, schemas, text)


def _formed(
    message: Mapping[str, Any], as_text: bool, thoughts: str, empty: str | None, in_parts: bool
) -> dict[str, Any]:
    formed = {name: content for name, content in message.items() if name != "reasoning_content"}
    if message.get("reasoning_content"):
        formed[thoughts] = message["reasoning_content"]
    if message.get("tool_calls"):
        formed["content"] = message["content"] or empty
        formed["tool_calls"] = []
        for entry in message["tool_calls"]:
            arguments = entry["function"]["arguments"]
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            arguments = json.dumps(arguments, ensure_ascii=False) if as_text else arguments
            formed["tool_calls"].append({**entry, "function": {"name": CALLED, "arguments": arguments}})
    if in_parts and formed.get("content"):
        formed["content"] = [{"type": "text", "text": formed["content"]}]
    return formed


def _written(tokenizer: Any, messages: Any, tools: Any, prompt: bool) -> str | None:
    import jinja2

    try:
        return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt)
    except (jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError):
        return None


def judge(
    tokenizer: Any,
    ids: Sequence[int],
    weights: Sequence[float],
    messages: Sequence[Mapping[str, Any]],
    writings: Sequence[Writing],
    noted: bool,
) -> tuple[Outcome, str]:
    """Whether the targets of a row are right, and what is wrong with them or left as context.

    Args:
        tokenizer: that made the ids.
        ids: of the row [T].
        weights: 1 on targets [T].
        messages: the conversation, with marker words.
        writings: what the template writes of it.
        noted: whether a note tells the user of a peculiarity of the row.
    """
    segments = []
    for target, run in groupby(zip(ids, weights, strict=True), key=lambda pair: pair[1] != 0):
        segments.append((tokenizer.decode([token for token, _ in run], skip_special_tokens=False), target))
    text = "".join(segment for segment, _ in segments)
    flags = [target for segment, target in segments for _ in segment]
    writing = next((form for form in writings if _squeezed(form.text).startswith(_squeezed(text))), None)
    if writing is None:  # the row may end with an EOS token that the template does not write
        text = text.removesuffix(tokenizer.eos_token)
        writing = next((form for form in writings if _squeezed(form.text).startswith(_squeezed(text))), None)
    if writing is None:
        return "wrong", "the text is not what the template writes of this conversation"
    words = [(match[0], match.start(), match.end()) for match in MARK.finditer(text)]
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    written = set().union(*(_marks(messages[index]) for index in turns))
    if lacking := written.intersection(MARK.findall(writing.text)).difference(word for word, _, _ in words):
        return "wrong", f"the row lacks what the template writes: {', '.join(sorted(lacking))}"
    for word, start, end in words:
        if word not in written and word not in (CALLED, KEY) and any(flags[start:end]):
            return "wrong", f"a word of another message is a target: {word}"
    if any(target and not MARK.findall(segment) for segment, target in segments):
        return "wrong", "a run of targets holds nothing of an answer"
    context = []
    for index in turns:
        spots = [(start, end) for word, start, end in words if word in _marks(messages[index])]
        if any(not all(flags[start:end]) for start, end in spots):
            context.append(f"message {index}")
            if not noted:
                return "wrong", f"an answer is no target, and no note says so: message {index}"
        elif spots:
            turn = _Turn(writing, index, text, flags, spots)
            eos = tokenizer.eos_token if index == turns[-1] else None
            if fault := turn.fault_at_start() or turn.fault_at_end(noted, eos):
                return "wrong", f"message {index}: {fault}"
    return ("context", ", ".join(context)) if context else ("right", "")


@dataclass(frozen=True)
class _Turn:
    """A turn of the assistant in the text of a row: where its marker words are, and what the template writes of it."""

    writing: Writing
    index: int
    text: str
    flags: Sequence[bool]
    spots: Sequence[tuple[int, int]]

    @property
    def start(self) -> int:
        """Where the targets begin that hold the first marker word."""
        start = self.spots[0][0]
        while start and self.flags[start - 1]:
            start -= 1
        return start

    def fault_at_start(self) -> str | None:
        """What is wrong with the first targets."""
        prompt, alone = self.writing.until(self.index, True), self.writing.until(self.index, False)
        lead = self.text[self.start : self.spots[0][0]]
        if prompt is None or MARK.search(lead.replace(CALLED, "").replace(KEY, "")):
            return None  # two turns of the assistant, written without a border
        length = len(prompt.rstrip())
        if self.text.startswith(prompt.rstrip()):
            skipped = _squeezed(self.text[length : self.start])
            if self.start < length:
                return f"a part of the prompt is a target: {lead!r}"
            # What the template writes before any answer, such as an empty block of thoughts, may be context.
            ordinary = _squeezed(self.writing.before_text(self.index) or "").endswith(skipped)
            if self.writing.messages[self.index].get("tool_calls") and not ordinary:
                return f"the beginning of a call is no target: {skipped!r}"
        elif alone is not None and prompt.startswith(alone):
            header = _squeezed(prompt[len(alone) :])
            if header and header in _squeezed(lead):
                return f"the header of the turn is a target: {lead!r}"
        return None

    def fault_at_end(self, noted: bool, eos: str | None) -> str | None:
        """What is wrong with the last targets; `eos` may end the last turn of a conversation."""
        start, end = self.spots[-1]
        mark = self.text[start:end]
        stop = end
        while stop < len(self.text) and self.flags[stop]:
            stop += 1
        whole = self.writing.until(self.index + 1, False)
        # Two turns of the assistant may be written without a border.
        if whole is None or mark not in whole or MARK.search(self.text[end:stop]):
            return None
        tail, trained = _squeezed(whole.rsplit(mark, 1)[1]), _squeezed(self.text[end:stop])
        # Some templates write the next header behind any finished conversation; it is the text before this turn, too.
        header = tail.removeprefix(trained)
        always = whole == self.writing.until(self.index + 1, True)
        if trained and always and _squeezed(self.text[: self.start]).endswith(header):
            return None
        following = _squeezed(self.text[end:])
        if eos is not None:
            closed = trained == tail or trained.removesuffix(eos) == tail
        elif following.startswith(tail):
            closed = trained == tail
        else:  # within a conversation the end of a turn may be shorter than at its end
            shared = [
                letter for letter, _ in takewhile(lambda pair: pair[0] == pair[1], zip(tail, following, strict=False))
            ]
            left = "".join(shared).removeprefix(trained)
            closed = tail.startswith(trained) and (not re.search(r"[>\]]", left) if trained else noted)
        return None if closed else f"the end {tail!r} is trained as {trained!r}"


def _squeezed(text: str) -> str:
    return "".join(text.split())
