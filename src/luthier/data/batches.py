"""From tokenised rows to batches: data order, micro-batches and layouts.

The order of records is a function of (seed, epoch, record id): the same for every method, unchanged by further
parts of a recipe, and resumed from one integer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy
import torch

from luthier.keyed import order
from luthier.types import Batch, Row, Stream

Layout = Literal["padded", "packed", "shared", "even"]
"""`even`: rows of one length per forward, which then need no padding."""
RecordRows = tuple[Row, ...]
Item = TypeVar("Item")


class Ordered:
    """The endless stream of records: each epoch in an order of its own, or, without `shuffled`, in that of the rows."""

    def __init__(self, rows: Sequence[Row], seed: int, shuffled: bool = True):
        self.rows_by_record = group_by_record(rows)
        self.seed = seed
        self.shuffled = shuffled
        self._epoch = -1
        self._order: list[int] = []

    def __len__(self) -> int:
        return len(self.rows_by_record)

    def at(self, position: int) -> RecordRows:
        """The rows of the record at a position of the stream; position // len(self) is the epoch."""
        epoch, index = divmod(position, len(self.rows_by_record))
        if not self.shuffled:
            return self.rows_by_record[index]
        if epoch != self._epoch:  # positions are mostly asked for in turn: one sort serves an epoch
            self._order = data_order([record_rows[0].record for record_rows in self.rows_by_record], self.seed, epoch)
            self._epoch = epoch
        return self.rows_by_record[self._order[index]]


def group_by_record(rows: Sequence[Row]) -> list[RecordRows]:
    """The rows of each record, which are never separated; records in the order of their first rows."""
    rows_by_record: dict[str, list[Row]] = {}
    for row in rows:
        rows_by_record.setdefault(row.record, []).append(row)
    return [tuple(record_rows) for record_rows in rows_by_record.values()]


def positions(rows: Sequence[Row], layout: Layout) -> int:
    """The number of positions of one forward over these rows, padding included."""
    if layout == "packed":
        return sum(map(len, rows))
    lines = [line_length(line) for line in lines_of(rows)]
    return len(lines) * max(lines)


def data_order(records: Sequence[str], seed: int, epoch: int) -> list[int]:
    """A permutation of the records as indices, keyed by (seed, epoch, record id)."""
    # The id decides between equal keys: sorting alone would leave these in the order of the rows.
    keys = [order(seed, epoch, record) for record in records]
    return sorted(range(len(records)), key=lambda index: (keys[index], records[index]))


def limited(items: Sequence[Item], limit: int | None, name: Callable[[Item], str]) -> list[Item]:
    """At most `limit` rows or records, in their order; their names alone decide which are kept."""
    if limit is None or len(items) <= limit:
        return list(items)
    # Seed and epoch are fixed: every run that has this limit keeps the same rows.
    order_of_names = data_order([name(element) for element in items], 0, 0)
    return [items[index] for index in sorted(order_of_names[:limit])]


def micro_batches(rows: Sequence[Row], tokens: int, layout: Layout) -> list[list[Row]]:
    """Cut an update's rows into micro-batches of at most `tokens` positions, padding included.

    A record of more than `tokens` positions is a micro-batch of its own. In the layout "shared", rows with the same
    prompt follow one another and read it once, if that is less work. In the layout "even" the rows of a micro-batch
    have one length.
    """
    # Longest first: neighbours of similar length need little padding, and a shortage of memory shows at once.
    rows_by_record = [sorted(record_rows, key=lambda row: (-len(row), row.id)) for record_rows in group_by_record(rows)]
    ordered = sorted(rows_by_record, key=lambda record_rows: (-len(record_rows[0]), record_rows[0].record))
    if layout == "packed":
        return _first_fit(ordered, tokens)
    pieces = share_prompts(ordered, tokens) if layout == "shared" else ordered
    batches: list[list[Row]] = []
    for piece in pieces:
        fits = bool(batches) and positions([*batches[-1], *piece], layout) <= tokens
        if fits and (layout != "even" or len({len(row) for row in (*batches[-1], *piece)}) == 1):
            batches[-1] += piece
        else:
            batches.append(list(piece))
    return batches


def _first_fit(ordered: Sequence[Sequence[Row]], tokens: int) -> list[list[Row]]:
    """First-fit decreasing: each record goes into the first micro-batch with enough free positions."""
    bins: list[list[Row]] = []
    free: list[int] = []
    for record_rows in ordered:
        size = positions(record_rows, "packed")
        index = next((index for index, space in enumerate(free) if space >= size), None)
        if index is None:
            bins.append(list(record_rows))
            free.append(tokens - size)
        else:
            bins[index] += record_rows
            free[index] -= size
    return bins


LINE = 1024
"""Most positions of a line of answers to one prompt: attention computes all pairs of a line, masked ones included."""


def share_prompts(rows_by_record: Sequence[Sequence[Row]], most: int) -> list[list[Row]]:
    """Join records whose rows have the same prompt into lines; the first row of a line reads it for all others.

    The prompt of a row are its positions before the first target. Rows are joined if the prompt is at least a quarter
    as long as the rest: with a shorter one, the masked pairs of positions cost more than sharing saves.

    Args:
        rows_by_record: the rows of each record, longest record first.
        most: bound of the positions of a line, besides LINE.

    Returns:
        Lines, longest first; a record that shares its prompt with no other is a piece of its own.
    """
    lines: dict[bytes, list[list[Row]]] = {}
    pieces: list[list[Row]] = []
    for record_rows in rows_by_record:
        if not _may_share(record_rows):
            pieces.append(list(record_rows))
            continue
        candidates = lines.setdefault(_prompt(record_rows[0]), [])
        for line in candidates:
            if line_length(_joined([*line, *record_rows])) <= min(most, LINE):
                line += record_rows
                break
        else:
            candidates.append(list(record_rows))
    for candidates in lines.values():
        pieces += [_joined(line) for line in candidates]
    return sorted(pieces, key=lambda piece: (-max(map(line_length, lines_of(piece))), piece[0].record))


def _may_share(record_rows: Sequence[Row]) -> bool:
    for row in record_rows:
        prompt = prompt_length(row)
        if not 0 < len(row) - prompt <= 4 * prompt:
            return False
    return len({_prompt(row) for row in record_rows}) == 1 and line_length(_joined(record_rows)) <= LINE


def _joined(rows: Sequence[Row]) -> list[Row]:
    """Rows of one line: all but the first share the prompt."""
    return [replace(row, shared=prompt_length(row) if index else 0) for index, row in enumerate(rows)]


def prompt_length(row: Row) -> int:
    """The number of positions before the first target; all positions of a row without targets."""
    if not len(row.ids):
        return 0
    targets = row.streams["weights"].values[1:] != 0
    return int(targets.argmax()) + 1 if targets.any() else len(row.ids)


def mismatched(rows: Sequence[Row], key: str) -> dict[str, Row]:
    """The answer of each row behind another prompt, by row id; empty if all rows have the same prompt.

    The different prompts have a cyclic order keyed by `key`, and the answers to a prompt follow the prompt before it:
    every answer occurs once, never behind its own prompt, whatever the order of the rows. The prompt of a row are its
    positions before the first target. New rows are cut at the length of the longest row and have only `weights`.
    """
    answers = {row.id: row for row in rows}
    ordered = sorted({_prompt(row) for row in rows}, key=lambda ids: (order(key, ids), ids))
    if len(ordered) < 2:
        return {}
    before = {ids: numpy.frombuffer(ordered[index - 1], numpy.int32) for index, ids in enumerate(ordered)}
    longest = max(map(len, rows))
    rows_by_id = {}
    for name, row in answers.items():
        prompt, first = before[_prompt(row)], prompt_length(row)
        ids = numpy.concatenate([prompt, row.ids[first:]])[:longest]
        weights = numpy.concatenate([numpy.zeros(len(prompt), numpy.float32), row.streams["weights"].values[first:]])
        rows_by_id[name] = Row(name, ids, {"weights": Stream(weights[:longest], "token")})
    return rows_by_id


def _prompt(row: Row) -> bytes:
    return row.ids[: prompt_length(row)].astype(numpy.int32).tobytes()


def shortened(row: Row, length: int) -> Row:
    """The row with its first `length` tokens; row streams stay."""
    streams = dict(row.streams)
    for name, stream in row.streams.items():
        if stream.axis == "token":
            streams[name] = Stream(stream.values[:length], "token", stream.pad)
    return replace(row, ids=row.ids[:length], streams=streams)


def lines_of(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each line of a batch: a row, and those after it that share its prompt."""
    lines: list[list[Row]] = []
    for row in rows:
        if row.shared:
            lines[-1].append(row)
        else:
            lines.append([row])
    return lines


def line_length(line: Sequence[Row]) -> int:
    """The number of positions of a line; the shared prompt counts once."""
    return sum(len(row) - row.shared for row in line)


def collate(rows: Sequence[Row], layout: Layout = "padded", pad_id: int = 0, side: str = "right") -> Batch:
    """Put rows into one batch [B,T]; `packed` has B = 1, and its positions restart at every row.

    Args:
        rows: R rows with the same streams.
        layout: `padded` has B = R; rows with `shared` are put into lines in this layout too.
        pad_id: token id of padding.
        side: side of the padding, "right" or "left"; packed batches have none, shared ones have it on the right.
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
    streams = _token_streams(rows)
    tokens = {name: numpy.full(shape, stream.pad, dtype=stream.values.dtype) for name, stream in streams.items()}
    for index, row in enumerate(rows):
        padding = longest - len(row.ids)
        span = slice(0, len(row.ids)) if side == "right" else slice(padding, longest)
        ids[index, span] = row.ids
        example_of[index, span] = index
        if side == "left":
            position_of[index] = numpy.maximum(position_of[index] - padding, 0)
        for name, values in tokens.items():
            values[index, span] = row.streams[name].values
    # A causal model never sees padding on its right: only padding on the left needs a mask.
    mask = torch.from_numpy((example_of >= 0).astype(numpy.int64)) if side == "left" else None
    return _batch(rows, ids, position_of, example_of, tokens, mask)


def _token_streams(rows: Sequence[Row]) -> dict[str, Stream]:
    return {name: stream for name, stream in rows[0].streams.items() if stream.axis == "token"}


def _packed(rows: Sequence[Row]) -> Batch:
    """Rows one after the other in [1,T]; restarting positions keep them apart, so there is no mask."""
    ids = numpy.concatenate([row.ids for row in rows])[None].astype(numpy.int64)
    position_of = numpy.concatenate([numpy.arange(len(row.ids), dtype=numpy.int64) for row in rows])[None]
    example_of = numpy.repeat(numpy.arange(len(rows), dtype=numpy.int64), [len(row.ids) for row in rows])[None]
    tokens = {}
    for name in _token_streams(rows):
        tokens[name] = numpy.concatenate([row.streams[name].values for row in rows])[None]
    return _batch(rows, ids, position_of, example_of, tokens, None)


def _shared(rows: Sequence[Row], pad_id: int) -> Batch:
    """Lines [B,T] of rows that share a prompt: it occurs once, and every answer's positions continue from its end."""
    lines = lines_of(rows)
    shape = (len(lines), max(map(line_length, lines)))
    ids = numpy.full(shape, pad_id, dtype=numpy.int64)
    example_of = numpy.full(shape, -1, dtype=numpy.int64)
    position_of = numpy.tile(numpy.arange(shape[1], dtype=numpy.int64), (shape[0], 1))
    prompts = numpy.zeros(shape, dtype=bool)
    streams = _token_streams(rows)
    tokens = {name: numpy.full(shape, stream.pad, dtype=stream.values.dtype) for name, stream in streams.items()}
    example = 0  # counts rows over all lines, which need not have the same number of rows
    for index, line in enumerate(lines):
        prompts[index, : max(row.shared for row in line)] = True
        end = 0
        for row in line:
            start, end = end, end + len(row.ids) - row.shared
            ids[index, start:end] = row.ids[row.shared :]
            example_of[index, start:end] = example
            position_of[index, start:end] = numpy.arange(row.shared, len(row.ids))
            for name, values in tokens.items():
                values[index, start:end] = row.streams[name].values[row.shared :]
            example += 1
    batch = _batch(rows, ids, position_of, example_of, tokens, None)
    return replace(batch, prompts=torch.from_numpy(prompts))


def _batch(rows: Sequence[Row], ids: Any, position_of: Any, example_of: Any, tokens: dict, mask: Any) -> Batch:
    streams = {}
    for name, values in tokens.items():
        streams[name] = Stream(torch.from_numpy(values), "token", rows[0].streams[name].pad)
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
    """Python numbers as float32; arrays keep their type."""
    return numpy.asarray(values, dtype=numpy.float32 if isinstance(values, int | float) else None)
