"""From a record to token ids and weights: one tokenisation of the full text, and targets checked by decoding."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import numpy

from luthier.chat.spans import BEGUN, CONTROL, Rendered, squeeze
from luthier.data.forms.base import RecordShape
from luthier.data.long_texts import beginning
from luthier.data.pairs import rows_of
from luthier.data.shapes import (
    good_side,
    last_answer,
    messages_of,
    plain_text,
    shape_part,
    unlearned,
    with_written_roles,
)
from luthier.data.templates import ChatTemplate, FormatString, first_target, whole_text
from luthier.errors import DataError, ModelError, RecipeError
from luthier.records.roles import prefers_written
from luthier.types import Record, Row, Stream

TARGETS = ("auto", "assistant", "completion", "all")
IN_PIECES = "texts tokenised in pieces, because a token would span the border of prompt and answer"
MARKED_LEARNED = "answers marked as not to be learned, which `data.targets: all` learns all the same"
"""Notes on a record; the doctor counts the records with each note."""


@dataclass(frozen=True)
class Rendering:
    """A record's rows, the number of tokens before the last answer (None: no answer) and notes for the user.

    A record of several answers has a row for each, the good one first; every other record has one row.
    """

    rows: tuple[Row, ...]
    prompt_tokens: int | None
    notes: tuple[str, ...]

    @property
    def row(self) -> Row:
        """The only row, or that of the good answer."""
        return self.rows[0]


class Renderer:
    """Renders records as token rows for one model.

    Args:
        tokenizer: a fast tokenizer of transformers, since masks need character offsets.
        render: "chat" for the model's own template, or a format string.
        targets: the tokens that are learned. assistant: every answer of the conversation; completion: the completion,
            or the last answer; all: every token; auto: depends on the shape of the record.

    Raises:
        ModelError: the tokenizer has no offsets, or (at the first record) no chat template although `render` is "chat".
        RecipeError: an unknown `targets`, or a `render` that is no format string.
    """

    def __init__(self, tokenizer: Any, render: str = "chat", targets: str = "auto"):
        if targets not in TARGETS:
            raise RecipeError(f"data.targets is `{targets}`.", f"Use one of {', '.join(TARGETS)}.")
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"{type(tokenizer).__name__} gives no character offsets, so answers cannot be masked.",
                "Save the model with a tokenizer.json (a fast tokenizer).",
            )
        self.tokenizer, self.form, self.targets = tokenizer, render, targets
        self._format = None if render == "chat" else FormatString(render)
        # The tokenizers library is called directly, which takes a third of the time of transformers, and on a copy:
        # truncation and padding are states of the shared object that a saved file or another caller may switch on.
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._written_roles: dict[tuple[str, str], bool] = {}

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's chat template, checked on one question and answer."""
        return ChatTemplate(self.tokenizer)

    @property
    def end_ids(self) -> set[int]:
        """The tokens that end an answer: EOS and the template's end of turn."""
        ends = {self.tokenizer.eos_token_id}
        if self._format is None and self.tokenizer.chat_template:
            ends.add(self.template.closing_id)
        return {end for end in ends if end is not None}

    @property
    def end_id(self) -> int | None:
        """The last token of a training row: the template's end of turn, else EOS."""
        closing = self.template.closing_id if self._format is None and self.tokenizer.chat_template else None
        return self.tokenizer.eos_token_id if closing is None else closing

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the format string writes besides the question and the answer; none in a chat."""
        return () if self._format is None else self._format.columns

    @cached_property
    def key(self) -> str:
        """Hash of everything besides the record that decides its ids and targets."""
        tokenizer = self.tokenizer
        settings = [tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token, self.form, self.targets]
        text = self._backend.to_str() + repr(settings)
        return hashlib.sha256(text.encode()).hexdigest()

    def render(self, record: Record) -> Row:
        """The record as ids [T] with a stream `weights` [T], 1 on targets, 0 elsewhere; of a pair the chosen side."""
        return self.explain(record).row

    def explain(self, record: Record, most: int | None = None) -> Rendering:
        """All rows of the record, with the length of the prompt and notes on peculiarities of the record.

        Args:
            most: tokens of a row that are kept; of a text far longer than that, only the beginning becomes a row, which
                still has more than `most` tokens. None: every row is whole.

        Raises:
            DataError: the record cannot be rendered, or its answer cannot be masked; the message names the record.
        """
        try:
            if (part := shape_part(record.shape)) is not None:
                return self._sides(record, part, most)
            return self._tokenised(record, self._rendered(record, most))
        except DataError as error:
            raise DataError(f"{record.origin}: record {record.id}: {error.message}", error.hint) from None

    def prompt(self, record: Record) -> list[int]:
        """The ids [P] before the last answer, to generate it from; all ids if the conversation ends with a question.

        Raises:
            DataError: a `text` record, which has no prompt.
        """
        rendering = self.explain(record)
        if rendering.prompt_tokens is None:
            raise DataError(
                f"{record.origin}: record {record.id} is plain text without a prompt to answer.",
                "Set `evaluate.metric: perplexity`, or bring records with prompt and completion, or messages.",
            )
        return rendering.row.ids[: rendering.prompt_tokens].tolist()

    def prompt_text(self, record: Record) -> str:
        """The text before the last answer; for `text` records the whole text."""
        rendered = self._rendered(record)
        return rendered.text[: rendered.answer_start]

    def reference(self, record: Record) -> str:
        """The gold answer, which is the completion or the last assistant message; empty without one."""
        if record.shape == "text":
            return ""
        messages = messages_of(record)
        last = last_answer(messages)
        return plain_text(messages[last]) if last < len(messages) else ""

    def preview(self, row: Row) -> list[tuple[str, bool]]:
        """The row token by token: its text, and whether it is a target. Tokens that share a character are joined."""
        ids = row.ids.tolist()
        targets = (row.streams["weights"].values != 0).tolist()
        pieces, first = [], 0
        for index in range(len(ids)):
            # Decoded behind four tokens of context: many decoders strip the space before the first token.
            context = max(0, first - 4)
            before = self._decode(ids[context:first])
            text = self._decode(ids[context : index + 1])[len(before) :]
            # U+FFFD: the bytes of a character are incomplete, and the next token goes on with them.
            broken = text.endswith("\ufffd") and index + 1 < len(ids) and index - first < 8
            if not (broken and targets[index + 1] == targets[first]):
                pieces.append((text, targets[first]))
                first = index + 1
        return pieces

    def _rendered(self, record: Record, most: int | None = None) -> Rendered:
        if most is not None:
            return beginning(self._rendered(record), most, lambda text: len(self._ids(text, False)[0]))
        record = good_side(record)
        rendered = self._with_targets(record)
        marked = self.targets == "all" and unlearned(record)
        return replace(rendered, notes=(*rendered.notes, MARKED_LEARNED)) if marked else rendered

    def _with_targets(self, record: Record) -> Rendered:
        if record.shape == "text" and self.targets in ("assistant", "completion"):
            raise DataError(f"plain text has no answers, so `data.targets: {self.targets}` leaves nothing to learn.")
        context, everything = unlearned(record), self.targets == "all"
        if self._format is not None:
            rendered = self._format.render(record, everything)
            return replace(rendered, spans=()) if context and not everything else rendered
        if record.shape == "text":
            return whole_text(record)
        record = with_written_roles(record, self._prefers_written)
        first = 0 if everything else first_target(record, self.targets)
        return self.template.render(record, wanted=lambda index: index >= first and index not in context)

    def _prefers_written(self, written: str, usual: str) -> bool:
        """Whether the template knows the user's name of a role better than the usual one; tried once for each."""
        if (written, usual) not in self._written_roles:
            template = self.template
            prefers = prefers_written(lambda messages: template.text(messages, None), template.special, written, usual)
            self._written_roles[written, usual] = prefers
        return self._written_roles[written, usual]

    def _sides(self, record: Record, part: RecordShape, most: int | None) -> Rendering:
        """The rows of all answers, whose prompts must have the same tokens: a pair compares answers to one prompt."""
        names, sides = zip(*part.sides(record), strict=True)
        renderings = [self._tokenised(side, self._rendered(side, most)) for side in sides]
        first = renderings[0]
        for name, other in zip(names[1:], renderings[1:], strict=True):
            prompts = first.row.ids[: first.prompt_tokens], other.row.ids[: other.prompt_tokens]
            if first.prompt_tokens != other.prompt_tokens or not numpy.array_equal(*prompts):
                raise DataError(
                    f"the tokens before the {names[0]} and before the {name} answer differ, so they answer different "
                    "prompts.",
                    "The conversations may differ in their last answer only. Some chat templates also write another "
                    "text before answers that hold thoughts: give thoughts to all answers or to none.",
                )
        rows = rows_of(record, [rendering.row for rendering in renderings])
        notes = dict.fromkeys(chain.from_iterable(rendering.notes for rendering in renderings))
        return Rendering(rows, first.prompt_tokens, tuple(notes))

    def _tokenised(self, record: Record, rendered: Rendered) -> Rendering:
        """The row of a rendered record: weights by the character spans of its answers, each checked by decoding."""
        starts = sorted({span.start for span in rendered.spans} | {rendered.answer_start or 0})
        ids, offsets, indices, in_pieces = self._encode(rendered, starts)
        weights = numpy.zeros(len(ids), dtype=numpy.float32)
        token_starts = numpy.array([start for start, _ in offsets], dtype=numpy.int64)
        for span in rendered.spans:
            first = indices[span.start]
            end = first + int(numpy.searchsorted(token_starts[first:], span.end))
            weights[first:end] = 1
            self._verify(ids[first:end], span.answer)
        if self.targets == "all":
            weights[:] = 1
        eos = self.tokenizer.eos_token_id
        if rendered.close and eos is None:
            raise ModelError("The tokenizer has no EOS token, so the model could never learn where an answer ends.")
        if rendered.close and rendered.spans and (not ids or ids[-1] != eos):
            ids = [*ids, eos]
            weights = numpy.append(weights, numpy.float32(1))
        row = Row(record.id, numpy.array(ids, dtype=numpy.int32), {"weights": Stream(weights, "token")})
        prompt_tokens = None if rendered.answer_start is None else indices[rendered.answer_start]
        notes = (*rendered.notes, *self._remarks(record, rendered), *((IN_PIECES,) if in_pieces else ()))
        return Rendering((row,), prompt_tokens, notes)

    def _remarks(self, record: Record, rendered: Rendered) -> Iterator[str]:
        """Notes on control tokens that the user's own texts hold."""
        bos = self.tokenizer.bos_token
        if rendered.special_tokens and bos and self._adds_bos and rendered.text.startswith(bos):
            yield BEGUN
        if any(self._control.search(text) for text in self._texts(record)):
            yield CONTROL

    @cached_property
    def _adds_bos(self) -> bool:
        """Whether the tokenizer writes BOS before a text."""
        ids = self._backend.encode("a", add_special_tokens=True).ids
        return self.tokenizer.bos_token_id is not None and ids[:1] == [self.tokenizer.bos_token_id]

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """The tokens that the tokenizer reads as control tokens wherever they stand."""
        added_tokens = self.tokenizer.added_tokens_decoder.values()
        texts = {token.content for token in added_tokens if token.special} | set(self.tokenizer.all_special_tokens)
        words = sorted(filter(str.strip, texts), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, words)) or r"(?!)")  # the last matches nothing

    def _texts(self, record: Record) -> Iterator[str]:
        """The user's own texts in which a control token is a surprise."""
        bos, eos = self.tokenizer.bos_token or "", self.tokenizer.eos_token or ""
        if self._format is not None:
            yield from self._format.texts(record)
        elif record.shape == "text":
            yield record.fields["text"].removeprefix(bos).removesuffix(eos)
        else:
            for message in messages_of(record):
                content = message.get("content") or ""
                # An answer may hold the tags of thoughts; what would end it early is a surprise there, too.
                if message["role"] != "assistant" or any(end in content for end in self._ends):
                    yield content

    @cached_property
    def _ends(self) -> list[str]:
        """The texts of the tokens that end an answer."""
        return self.tokenizer.convert_ids_to_tokens(sorted(self.end_ids))

    def _encode(
        self, rendered: Rendered, starts: list[int]
    ) -> tuple[list[int], list[tuple[int, int]], Mapping[int, int], bool]:
        """The ids of a text and their character offsets.

        Returns:
            Ids, their (start, end) in the text, the token index of each of `starts`, and whether the text was
            tokenised in pieces.
        """
        text, special = rendered.text, rendered.special_tokens
        ids, offsets = self._ids(text, special)
        # Generation starts from the tokens of the prompt alone, so these must begin the tokens of the full text.
        prefixes = {start: self._ids(text[:start], special)[0] if start else [] for start in starts}
        if all(ids[: len(prefix)] == prefix for prefix in prefixes.values()):
            return ids, offsets, {start: len(prefix) for start, prefix in prefixes.items()}, False
        # A token spans a border: each piece between borders is tokenised alone, as it would be in generation.
        joined_ids: list[int] = []
        joined_offsets: list[tuple[int, int]] = []
        borders = [0, *[start for start in starts if start > 0], len(text)]
        indices = {0: 0}
        for start, end in pairwise(borders):
            indices[start] = len(joined_ids)
            piece_ids, piece_offsets = self._ids(text[start:end], special and start == 0)
            joined_ids += piece_ids
            joined_offsets += [(first + start, last + start) for first, last in piece_offsets]
        if self._squeeze(self._decode(joined_ids)) != self._squeeze(self._decode(ids)):
            raise DataError("the tokenizer joins prompt and answer, and reads other text when they are separated.")
        return joined_ids, joined_offsets, indices, True

    def _ids(self, text: str, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and character offsets, without the EOS that some tokenizers add: it would end the prompt."""
        encoded = self._backend.encode(text, add_special_tokens=special)
        ids, offsets = encoded.ids, encoded.offsets
        bos = self.tokenizer.bos_token_id
        if special and bos is not None and ids[:2] == [bos, bos] and text.startswith(self.tokenizer.bos_token):
            ids, offsets = ids[1:], offsets[1:]  # the text begins with BOS itself
        if special and ids and ids[-1] == self.tokenizer.eos_token_id and not text.endswith(self.tokenizer.eos_token):
            return ids[:-1], offsets[:-1]
        return ids, offsets

    def _verify(self, target_ids: list[int], answer: str) -> None:
        """Raise DataError unless the target tokens decode to the answer."""
        decoded = self._decode(target_ids)
        if self._squeeze(answer) not in self._squeeze(decoded):
            raise DataError(
                f"the answer {answer[:60]!r} reads back from its target tokens as {decoded[:60]!r}.",
                "The tokenizer cannot write this text: look for characters outside its vocabulary.",
            )

    def _squeeze(self, text: str) -> str:
        normaliser = self._backend.normalizer
        return squeeze(text, normaliser.normalize_str if normaliser is not None else None)

    def _decode(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False)
