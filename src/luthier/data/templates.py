"""From a conversation to text with proven answer spans, through the model's chat template."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from luthier.data.answer_spans import Conversation, Proofs
from luthier.data.shapes import last_answer, messages_of, prompt_length
from luthier.data.spans import Rendered, Span
from luthier.data.template_text import TemplateText
from luthier.errors import DataError
from luthier.types import Record


class ChatTemplate(TemplateText):
    """The chat template of a tokenizer.

    Luthier assumes nothing about the text that it writes. An answer that cannot be located with proof is context, or
    its record is refused with the reason.
    """

    def __init__(self, tokenizer: Any):
        super().__init__(tokenizer)
        self.proofs = Proofs()

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
        notes, kept = [*conversation.notes], []
        final: list[Span] = []
        for index, message in enumerate(conversation.messages):
            if message["role"] != "assistant" or not (index == last or wanted(index)):
                continue
            final, remarks = conversation.spans(index)
            notes += remarks
            # The last answer is located even if it is no target: generation starts where it begins.
            kept += final if wanted(index) else []
        if not final:
            raise DataError(
                "the chat template rewrites the last answer, so its text does not hold the answer to learn.",
                "Some templates drop thoughts or calls, or change case. Use a tokenizer whose template keeps the "
                "answer, or a format string in `data.render`.",
            )
        close = self.closing_id is None
        text, start = conversation.full[: final[-1].end], final[0].start
        return Rendered(
            text, tuple(kept), start, special_tokens=False, close=close, notes=tuple(dict.fromkeys(notes))
        )


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
