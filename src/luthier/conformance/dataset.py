"""The checks of data sets made by a program: of records (`records`), or of arrays (`rows`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from luthier.conformance.base import Failed, check_options, variants
from luthier.data.identity import content_hash
from luthier.data.shapes import make_record, question_and_answer
from luthier.errors import DataError
from luthier.types import Record, Row


def contents(dataset: Any) -> list[str]:
    """A hash of each record or row, in order: all its columns, or all its arrays."""
    if hasattr(dataset, "records"):
        columns = [[record.shape, record.fields] for record in dataset.records()]
        return [_hash(json.dumps(fields, sort_keys=True, default=str)) for fields in columns]
    return [_hash(repr(sorted(_arrays(row)))) for row in dataset.rows()]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _arrays(row: Row) -> Iterator[tuple[str, Any]]:
    for name, stream in row.streams.items():
        values = numpy.asarray(stream.values)
        yield name, (stream.axis, values.shape, values.tolist())


def check_readable(datasets: Sequence[Any]) -> None:
    """Every record is one that a file could hold, or every row has the same arrays, all finite."""
    for dataset in datasets:
        if hasattr(dataset, "records"):
            _check_records(dataset, dataset.records())
        else:
            _check_rows(dataset, dataset.rows())


def _check_records(dataset: Any, records: Sequence[Record]) -> None:
    if not records:
        raise Failed(f"{dataset!r}: there is no record")
    for number, record in enumerate(records, 1):
        if not isinstance(record, Record):
            raise Failed(f"{dataset!r}: record {number} is a {type(record).__name__}: make them by `as_record`")
        if not record.origin:
            raise Failed(f"{dataset!r}: record {number} has no origin, which error messages name")
        try:
            read = make_record(record.fields, {}, record.origin)
        except DataError as error:
            raise Failed(f"{dataset!r}: record {number} cannot be read: {error.message}") from None
        if read.shape != record.shape:
            raise Failed(f"{dataset!r}: record {number} has the shape `{record.shape}`, its columns `{read.shape}`")


def _check_rows(dataset: Any, rows: Sequence[Row]) -> None:
    if not rows:
        raise Failed(f"{dataset!r}: there is no row")
    names = set(rows[0].streams)
    for row in rows:
        if set(row.streams) != names:
            raise Failed(f"{dataset!r}: row {row.id} has the arrays {sorted(row.streams)}, others {sorted(names)}")
        for name, stream in row.streams.items():
            if not numpy.isfinite(numpy.asarray(stream.values, dtype=numpy.float64)).all():
                raise Failed(f"{dataset!r}: the array `{name}` of row {row.id} is not finite")


def check_unique(datasets: Sequence[Any]) -> None:
    """Ids differ. A record without an `id` is identified by its content, which becomes its id."""
    for dataset in datasets:
        if hasattr(dataset, "records"):
            names = [str(record.fields.get("id") or content_hash(record)) for record in dataset.records()]
        else:
            names = [row.id for row in dataset.rows()]
        if len(set(names)) < len(names):
            repeated = next(index for index, name in enumerate(names) if name in names[:index])
            raise Failed(f"{dataset!r}: number {repeated + 1} of {len(names)} is the same as one before it")


def check_determinism(dataset: Any) -> None:
    """The same options give the same data, in the same order; another seed gives other data."""
    again = type(dataset)(**{name: getattr(dataset, name) for name in type(dataset).model_fields})
    if not contents(dataset) == contents(dataset) == contents(again):
        raise Failed("the same options give other data the second time: is there a random call without a seed?")


def check_splits(dataset: Any) -> None:
    """No question of `split: train` is one of `split: test`."""
    questions = {}
    for split in ("train", "test"):
        records = dataset.model_copy(update={"split": split}).records()
        questions[split] = {question_and_answer(record)[0] for record in records}
    if shared := questions["train"] & questions["test"]:
        raise Failed(f"{len(shared)} questions are in both splits, for example {sorted(shared)[0][:60]!r}")


def checks(part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of a data set, in the order they are run."""
    datasets = variants(part)

    def values(dataset: Any) -> dict[str, Tensor]:
        numbers = [int(digest[:12], 16) for digest in contents(dataset)]
        return {"contents": torch.tensor(numbers, dtype=torch.float64)}

    yield "every record can be read", lambda: check_readable(datasets)
    yield "every record once", lambda: check_unique(datasets)
    yield "deterministic by its options", lambda: check_determinism(datasets[0])
    if "split" in part.model_fields and hasattr(part, "records"):
        yield "splits do not meet", lambda: check_splits(datasets[0])
    yield "every option changes something", lambda: check_options(datasets, values)
