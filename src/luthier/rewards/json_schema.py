"""JSON that conforms to a schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, field_validator

from luthier.data.parsers import parse_json
from luthier.rewards._schema import faults, unknown_keywords
from luthier.rewards.base import Answer, Judged, Reward


class JsonSchema(Reward):
    """1 for an answer that is valid JSON and conforms to a schema, `valid` for an answer that is only valid JSON.

    The schema is `schema_of_all`, or the record's column `column` (a mapping, or JSON as text). Without either, valid
    JSON is enough. The JSON may be in a fenced block or within prose, unless `whole`. Parts: `valid`, and `kept` for
    JSON that conforms. Known keywords: those of JSON Schema 2020-12 about types, values, lengths, numbers, members and
    combinations, and `$ref` within the schema. An unknown keyword is refused. The parsed JSON is passed on as `json`.
    """

    SETTINGS: ClassVar = (
        {"schema_of_all": {"type": "object", "required": ["a"]}},
        {"schema_of_all": {"type": "object", "required": ["a"]}, "valid": 0.5},
        {"schema_of_all": {"type": "object", "required": ["a"]}, "whole": True},
        {},
        {"column": "form"},
    )
    EXAMPLES: ClassVar = (
        ({}, {"text": '```json\n{"a": 1}\n```', "schema": {"required": ["a"]}}, 1.0),
        ({}, {"text": '{"b": 1}', "schema": '{"required": ["a"]}'}, 0.0),
        ({"valid": 0.5}, {"text": '{"b": 1}', "schema": {"required": ["a"]}}, 0.5),
        ({"whole": True}, {"text": 'see {"a": 1}'}, 0.0),
    )

    schema_of_all: dict[str, Any] | None = Field(
        None,
        description="JSON Schema that every answer must conform to. Null takes each record's own from `column`.",
    )
    column: str = Field(
        "schema",
        description="Column of the record with its schema, a mapping or JSON text. Without any schema, valid JSON is "
        "enough.",
    )
    valid: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Value of an answer that is valid JSON but breaks the schema. Above 0 it pays for the form before "
        "the content is right.",
    )
    whole: bool = Field(
        False,
        description="Whether the answer must be JSON and nothing else. False also reads JSON from a fenced block or "
        "out of prose.",
    )

    @field_validator("schema_of_all")
    @classmethod
    def _known(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None and (unknown := unknown_keywords(schema)):
            raise ValueError(f"the keyword `{unknown[0]}` of JSON Schema is not supported")
        return schema

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.column,)

    def score(self, answer: Answer) -> Judged:
        document = parse_json(answer.text)
        if document is None or (self.whole and not _is_json(answer.text)):
            return Judged(0.0, {"valid": 0.0, "kept": 0.0})
        conforms = not faults(document, self._schema(answer))
        return Judged(1.0 if conforms else self.valid, {"valid": 1.0, "kept": float(conforms)}, {"json": document})

    def _schema(self, answer: Answer) -> Mapping[str, Any]:
        if self.schema_of_all is not None:
            return self.schema_of_all  # checked when the recipe was read
        written = answer.record.fields.get(self.column)
        schema = json.loads(written) if isinstance(written, str) else written or {}
        if unknown := unknown_keywords(schema):
            raise ValueError(f"{answer.record.origin}: the keyword `{unknown[0]}` of its schema is not supported")
        return schema


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
