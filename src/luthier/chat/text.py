"""What a chat template writes around answers: its end of turn, its generation prompt, and the control tokens."""

from __future__ import annotations

import re
from typing import Any

from luthier.chat.forms import TemplateForms
from luthier.chat.spans import border, common_start, start_without_space
from luthier.errors import DataError, ModelError

SENTINEL = "ZQANSWERQZ"


class TemplateText:
    """The text that the chat template of a tokenizer writes.

    Attributes:
        closing: the end of turn, behind the last answer of a conversation; without white space at its end.
        header: the generation prompt where the template writes it behind every finished conversation; else empty.
        gap: white space between the generation prompt and an answer, which the model must write.
        special: the texts of all added tokens.
        closing_id: the token that ends a turn; None if the closing text has none.

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
        self.toolless: Any = None  # what stands for no tools
        self.in_parts = False  # whether content is a list of parts, as templates of models with pictures want it
        self.forms = TemplateForms(self.text)
        added_tokens = tokenizer.added_tokens_decoder.values()
        self.special = {token.content for token in added_tokens} | set(tokenizer.all_special_tokens)
        probe = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": SENTINEL}]
        text = self._first(probe)
        if text.count(SENTINEL) != 1:
            raise ModelError(
                f"The model's chat template writes an answer {text.count(SENTINEL)} times, so it cannot be masked.",
                "Use a format string: `data.render`.",
            )
        before, after = text.split(SENTINEL)
        self.closing, self.header = self._divided(after.rstrip(), before, probe)
        # White space that the template writes between its generation prompt and an answer, which the model must write.
        between = before.removeprefix(self.text(probe[:1], None, answer_next=True))
        self.gap = between if between != before and not between.strip() else ""
        self.closing_id = self._closing_id()

    def text(self, messages: list[dict[str, Any]], tools: Any, answer_next: bool = False) -> str:
        """Render messages; `answer_next` adds the generation prompt, the template's text before an answer.

        Raises:
            DataError: the template refuses the conversation, with its reason.
        """
        import jinja2

        try:
            return self.tokenizer.apply_chat_template(
                [*map(_in_parts, messages)] if self.in_parts else messages,
                tools=self.toolless if tools is None else tools,
                tokenize=False,
                add_generation_prompt=answer_next,
            )
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"the chat template refuses the roles {roles}: {error}",
                "Put the conversation into the form this model knows (some know no system message, most want "
                "user and assistant in turn), or use a format string in `data.render`.",
            ) from None

    def closing_of(self, after: str, whole: str | None = None) -> str:
        """The end-of-turn text at the start of `after`; within a conversation it may be shorter than at its end.

        Args:
            after: the text behind an answer.
            whole: what follows the answer at the end of a conversation (default: `closing`).
        """
        expected = self.closing if whole is None else whole
        shared = common_start(after, expected)
        if shared == expected:
            return shared
        if (loose := start_without_space(after, expected)) is not None:
            return loose
        # Both may go on with a control token, of which the first letters are the same.
        shared = shared[: border(shared, (after[len(shared) :], expected[len(shared) :]), self.special)]
        if whole is not None:
            return shared.rstrip()
        return shared[: max((shared.rfind(token) + len(token) for token in self.special if token in shared), default=0)]

    def ends(self, closing: str) -> bool:
        """Whether an end-of-turn text holds a control token, which a model can stop at."""
        return any(token in closing for token in self.special)

    def _first(self, probe: list[dict[str, Any]]) -> str:
        """The text of a question and an answer, in the first form in which the template writes the answer.

        Some templates want a list of tools where there are none, those of models with pictures a list of parts.
        """
        texts, errors = [], []
        for self.toolless, self.in_parts in ((None, False), ([], False), (None, True), ([], True)):
            try:
                texts.append(self.text(probe, None))
            except DataError as error:
                errors.append(error.message)
                continue
            if SENTINEL in texts[-1]:
                return texts[-1]
        if not texts:
            raise ModelError(f"The model's chat template fails on a question and an answer: {errors[0]}")
        return texts[0]

    def _divided(self, closing: str, before: str, probe: list[dict[str, Any]]) -> tuple[str, str]:
        """The end of turn, and the generation prompt that some templates write behind it whether asked to or not."""
        try:
            if self.text(probe, None) != self.text(probe, None, answer_next=True):
                return closing, ""
            following = self.text([*probe, probe[0]], None).split(SENTINEL)[-1]
        except DataError:
            return closing, ""
        shared = common_start(following, closing)
        rest = closing[len(shared) :]
        if not rest or not before.rstrip().endswith(rest):
            return closing, ""
        # The first control token of a header is the same for all roles: it also begins the whole text.
        starts = [match.start() for token in self.special for match in re.finditer(re.escape(token), shared)]
        cuts = [start for start in sorted(starts) if self._begins(before, shared[start:])]
        stop = cuts[0] if cuts else border(shared, (following[len(shared) :], rest), self.special)
        return closing[:stop].rstrip(), closing[stop:].strip()

    def _begins(self, text: str, header: str) -> bool:
        """Whether a text begins with this header, behind control tokens such as BOS."""
        while text := text.lstrip():
            if text.startswith(header):
                return True
            token = max((token for token in self.special if text.startswith(token)), key=len, default="")
            if not token:
                return False
            text = text.removeprefix(token)
        return False

    def _closing_id(self) -> int | None:
        """The special token that ends a turn; None if the closing text has none."""
        ids = self.tokenizer(self.closing, add_special_tokens=False)["input_ids"]
        for token, text in zip(ids, self.tokenizer.convert_ids_to_tokens(ids), strict=True):
            if text in self.special:
                return token
        return None


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if content else message
