"""From tokenised rows to batches: data order, micro-batches and the layouts.

Order is a function of (seed, epoch, record id): the same for every method, untouched by adding parts,
and resumed from one integer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy
import torch

from luthier.keyed import order
from luthier.types import Batch, Row, Stream

Layout = Literal["padded", "packed", "shared"]
RecordRows = tuple[Row, ...]
Item = TypeVar("Item")


class Ordered:
    """The endless stream of records, each epoch in its own keyed order or as written."""

    def __init__(self, rows: Sequence[Row], seed: int, shuffled: bool = True):
        self.rows_by_record = group_by_record(rows)
        self.seed = seed
        self.shuffled = shuffled
        self._epoch = -1
        self._order: list[int] = []

    def __len__(self) -> int:
        return len(self.rows_by_record)

    def at(self, position: int) -> RecordRows:
        """The rows of the record at a position of the stream; position // len is the epoch."""
        epoch, place = divmod(position, len(self.rows_by_record))
        if not self.shuffled:
            return self.rows_by_record[place]
        if epoch != self._epoch:
            self._order = data_order([record_rows[0].record for record_rows in self.rows_by_record], self.seed, epoch)
            self._epoch = epoch
        return self.rows_by_record[self._order[place]]


def group_by_record(rows: Sequence[Row]) -> list[RecordRows]:
    """Rows that belong together, in the order of their first ones."""
    together: dict[str, list[Row]] = {}
    for row in rows:
        together.setdefault(row.record, []).append(row)
    return [tuple(found) for found in together.values()]


def positions(rows: Sequence[Row], layout: Layout) -> int:
    """Positions of one forward over these rows, padding included."""
    if layout == "packed":
        return sum(map(len, rows))
    lines = [line_length(line) for line in lines_of(rows)]
    return len(lines) * max(lines)


def data_order(records: Sequence[str], seed: int, epoch: int) -> list[int]:
    """A permutation of the records, keyed by (seed, epoch, record id)."""
    keys = [order(seed, epoch, record) for record in records]
    return sorted(range(len(records)), key=lambda i: (keys[i], records[i]))


def limited(items: Sequence[Item], limit: int | None, name: Callable[[Item], str]) -> list[Item]:
    """At most `limit` rows or records, in their order: by their names the same ones, whatever that order."""
    if limit is None or len(items) <= limit:
        return list(items)
    return [items[index] for index in sorted(data_order([name(item) for item in items], 0, 0)[:limit])]


def micro_batches(rows: Sequence[Row], tokens: int, layout: Layout) -> list[list[Row]]:
    """Cut an update's rows into micro-batches of at most `tokens` positions, padding included.

    Records are grouped by length, longest first: little padding, and a shortage of memory shows at once.
    A record that takes more than `tokens` is a micro-batch of its own. In the layout "shared" rows with the same
    prompt come one behind the other and read it once, where that is less work.
    """
    rows_by_record = [sorted(record_rows, key=lambda row: (-len(row), row.id)) for record_rows in group_by_record(rows)]
    ordered = sorted(rows_by_record, key=lambda record_rows: (-len(record_rows[0]), record_rows[0].record))
    if layout == "packed":
        return _first_fit(ordered, tokens)
    pieces = share_prompts(ordered, tokens) if layout == "shared" else ordered
    cut: list[list[Row]] = []
    for piece in pieces:
        if cut and positions([*cut[-1], *piece], layout) <= tokens:
            cut[-1] += piece
        else:
            cut.append(list(piece))
    return cut


def _first_fit(ordered: Sequence[Sequence[Row]], tokens: int) -> list[list[Row]]:
    bins: list[list[Row]] = []
    free: list[int] = []
    for record_rows in ordered:
        size = positions(record_rows, "packed")
        place = next((i for i, room in enumerate(free) if room >= size), None)
        if place is None:
            bins.append(list(record_rows))
            free.append(tokens - size)
        else:
            bins[place] += record_rows
            free[place] -= size
    return bins


LINE = 1024
"""Most positions of a line of answers to one prompt: attention is over all pairs of a line, seen or not."""


def share_prompts(rows_by_record: Sequence[Sequence[Row]], most: int) -> list[list[Row]]:
    """Join records whose rows all have the same prompt into lines: the first row of a line reads it for the others.

    A prompt is what stands before the first target. A row joins where the prompt is at least a quarter as long
    as what follows it: below that, the pairs of positions that do not see each other cost more than is saved.

    Args:
        most: positions of a line, if LINE is not less.

    Returns:
        Lines, longest first; a record that shares with no other is a piece of its own.
    """
    lines: dict[bytes, list[list[Row]]] = {}
    pieces: list[list[Row]] = []
    for record_rows in rows_by_record:
        if not _may_share(record_rows):
            pieces.append(list(record_rows))
            continue
        found = lines.setdefault(_prompt(record_rows[0]), [])
        line = next((one for one in found if line_length(_joined([*one, *record_rows])) <= min(most, LINE)), None)
        if line is None:
            found.append(list(record_rows))
        else:
            line += record_rows
    pieces += [_joined(line) for found in lines.values() for line in found]
    return sorted(pieces, key=lambda piece: (-max(map(line_length, lines_of(piece))), piece[0].record))


def _may_share(record_rows: Sequence[Row]) -> bool:
    worth = all(0 < len(row) - prompt_length(row) <= 4 * prompt_length(row) for row in record_rows)
    return worth and len({_prompt(row) for row in record_rows}) == 1 and line_length(_joined(record_rows)) <= LINE


def _joined(rows: Sequence[Row]) -> list[Row]:
    return [replace(row, shared=prompt_length(row) if place else 0) for place, row in enumerate(rows)]


def prompt_length(row: Row) -> int:
    """Positions before the first target; of a row without targets, or without tokens, all."""
    if not len(row.ids):
        return 0
    targets = row.streams["weights"].values[1:] != 0
    return int(targets.argmax()) + 1 if targets.any() else len(row.ids)


def mismatched(rows: Sequence[Row], key: str) -> dict[str, Row]:
    """Each row's answer behind the prompt of other rows, by `record`; empty where all rows have one prompt.

    The different prompts stand in an order keyed by `key`, and the answers of one come behind the one before it: every
    answer once, never behind its own prompt, whatever the order of the rows. A prompt is what stands before the first
    target. Rows are cut at the length of the longest one given; of the streams `weights` alone stays.
    """
    answers = {row.id: row for row in rows}
    ordered = sorted({_prompt(row) for row in rows}, key=lambda ids: (order(key, ids), ids))
    if len(ordered) < 2:
        return {}
    before = {ids: numpy.frombuffer(ordered[place - 1], numpy.int32) for place, ids in enumerate(ordered)}
    longest = max(map(len, rows))
    found = {}
    for record, row in answers.items():
        prompt, first = before[_prompt(row)], prompt_length(row)
        ids = numpy.concatenate([prompt, row.ids[first:]])[:longest]
        weights = numpy.concatenate([numpy.zeros(len(prompt), numpy.float32), row.streams["weights"].values[first:]])
        found[record] = Row(record, ids, {"weights": Stream(weights[:longest], "token")})
    return found


def _prompt(row: Row) -> bytes:
    return row.ids[: prompt_length(row)].astype(numpy.int32).tobytes()


def lines_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that stand in one line of a batch: each with those behind it that share its prompt."""
    lines: list[list[Row]] = []
    for row in rows:
        if row.shared:
            lines[-1].append(row)
        else:
            lines.append([row])
    return lines


def line_length(line: Sequence[Row]) -> int:
    """Positions of a line."""
    return sum(len(row) - row.shared for row in line)


def collate(rows: Sequence[Row], layout: Layout = "padded", pad_id: int = 0, side: str = "right") -> Batch:
    """Put rows into one batch: `packed` makes B = 1 with positions that restart at every record.

    Args:
        rows: R rows carrying the same streams.
        side: where padding goes, "right" or "left"; packed batches have none, shared ones have it right.
    """
    if layout == "packed":
        return _packed(rows)
    if any(row.shared for row in rows):
        return _shared(rows, pad_id)
    longest = max(len(row.ids) for row in rows)
    shape = (len(rows), longest)
    ids = numpy.full(shape, pad_id, dtype=numpy.int64)
    example_of = numpy.full(shape, -1, dtype=numpy.int64)
    position_of = numpy.tile(numpy.arange(longest, dtype=numpy.int64), (len(rows), 1))
    tokens = {
        name: numpy.full(shape, stream.pad, dtype=stream.values.dtype)
        for name, stream in rows[0].streams.items()
        if stream.axis == "token"
    }
    for index, row in enumerate(rows):
        at = slice(0, len(row.ids)) if side == "right" else slice(longest - len(row.ids), longest)
        ids[index, at] = row.ids
        example_of[index, at] = index
        if side == "left":
            position_of[index] = numpy.maximum(position_of[index] - (longest - len(row.ids)), 0)
        for name, values in tokens.items():
            values[index, at] = row.streams[name].values
    mask = torch.from_numpy((example_of >= 0).astype(numpy.int64)) if side == "left" else None
    return _batch(rows, ids, position_of, example_of, tokens, mask)


def _packed(rows: Sequence[Row]) -> Batch:
    ids = numpy.concatenate([row.ids for row in rows])[None].astype(numpy.int64)
    position_of = numpy.concatenate([numpy.arange(len(row.ids), dtype=numpy.int64) for row in rows])[None]
    example_of = numpy.repeat(numpy.arange(len(rows), dtype=numpy.int64), [len(row.ids) for row in rows])[None]
    tokens = {
        name: numpy.concatenate([row.streams[name].values for row in rows])[None]
        for name, stream in rows[0].streams.items()
        if stream.axis == "token"
    }
    return _batch(rows, ids, position_of, example_of, tokens, None)


def _shared(rows: Sequence[Row], pad_id: int) -> Batch:
    """Lines of rows that share a prompt [B,T]: it stands once, the answers behind it count on from its end."""
    lines = lines_of(rows)
    shape = (len(lines), max(map(line_length, lines)))
    ids = numpy.full(shape, pad_id, dtype=numpy.int64)
    example_of = numpy.full(shape, -1, dtype=numpy.int64)
    position_of = numpy.tile(numpy.arange(shape[1], dtype=numpy.int64), (shape[0], 1))
    prompts = numpy.zeros(shape, dtype=bool)
    streams = {name: stream for name, stream in rows[0].streams.items() if stream.axis == "token"}
    tokens = {name: numpy.full(shape, one.pad, dtype=one.values.dtype) for name, one in streams.items()}
    record = 0
    for index, line in enumerate(lines):
        prompts[index, : max(row.shared for row in line)] = True
        end = 0
        for row in line:
            at = slice(end, end := end + len(row.ids) - row.shared)
            ids[index, at] = row.ids[row.shared :]
            example_of[index, at] = record
            position_of[index, at] = numpy.arange(row.shared, len(row.ids))
            for name, values in tokens.items():
                values[index, at] = row.streams[name].values[row.shared :]
            record += 1
    batch = _batch(rows, ids, position_of, example_of, tokens, None)
    return replace(batch, prompts=torch.from_numpy(prompts))


def _batch(rows: Sequence[Row], ids: Any, position_of: Any, example_of: Any, tokens: dict, mask: Any) -> Batch:
    streams = {
        name: Stream(torch.from_numpy(values), "token", rows[0].streams[name].pad) for name, values in tokens.items()
    }
    for name, stream in rows[0].streams.items():
        if stream.axis == "row":
            values = numpy.stack([_row_values(row.streams[name].values) for row in rows])
            streams[name] = Stream(torch.from_numpy(values), "row", stream.pad)
    return Batch(
        ids=torch.from_numpy(ids),
        position_of=torch.from_numpy(position_of),
        example_of=torch.from_numpy(example_of),
        examples=tuple(row.id for row in rows),
        records=tuple(row.record for row in rows),
        streams=streams,
        attention_mask=mask,
    )


def _row_values(values: Any) -> numpy.ndarray:
    """Plain numbers as float32; arrays keep their type."""
    return numpy.asarray(values, dtype=numpy.float32 if isinstance(values, int | float) else None)
