"""From the `data:` block of a recipe to token rows in splits: read, divide, render, cut to length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy

from luthier.data.batches import shortened
from luthier.data.cache import Cached, read_cache, write_cache
from luthier.data.groups import group_records, with_groups
from luthier.data.identity import content_hash, identities
from luthier.data.leaks import Leaks, Trained
from luthier.data.long_texts import is_long
from luthier.data.origins import divided_origins
from luthier.data.pairs import rows_of
from luthier.data.render import Renderer
from luthier.data.report import DataReport, Division, Fitted, Problem, measure_lengths
from luthier.data.shapes import EmptyAnswer, UnknownShape, shape_columns
from luthier.data.shared_weights import with_shared_weights
from luthier.data.sources import EmptySource, NotUtf8, SourceError, load_records, scan
from luthier.data.split import Split, is_share, split_records
from luthier.data.words import words_of
from luthier.errors import DataError, RecipeError
from luthier.records.columns import notes_of, unread_columns
from luthier.records.guess import Guess
from luthier.types import Record, Row

SPLITS = ("train", "validation", "test")
POLICIES = ("drop", "truncate", "error")
Source = str | Mapping[str, Any]


@dataclass
class Problems:
    """What a reading that does not stop leaves: problems by kind, notes on files, guesses of columns by source."""

    by_kind: dict[str, list[Problem]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    guesses: list[tuple[Source, Guess]] = field(default_factory=list)

    def add(self, kind: str, problem: Problem) -> None:
        self.by_kind.setdefault(kind, []).append(problem)

    def facts(self) -> dict[str, Any]:
        """The fields of a DataReport."""
        return {"problems": self.by_kind, "sources": self.notes, "guesses": self.guesses}


class DataSettings(Protocol):
    """The keys of a recipe's `data:` block that this file reads; the renderer reads `render` and `targets`."""

    @property
    def train(self) -> Source: ...
    @property
    def validation(self) -> Source | int | None: ...
    @property
    def test(self) -> Source | int | None: ...
    @property
    def split_seed(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def too_long(self) -> str: ...
    @property
    def deduplicate(self) -> bool: ...
    @property
    def group_by(self) -> str | None: ...


@dataclass(frozen=True)
class Prepared:
    """Rows by split, their records by id (`Row.record`), the ids of each split, and the doctor's report."""

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    records: dict[str, Record]
    splits: dict[str, list[str]]
    report: DataReport


def prepare(
    settings: DataSettings, renderer: Renderer, base: Path, cache: Path | None = None, columns: Sequence[str] = ()
) -> Prepared:
    """Read, split, render and cut the data of a recipe.

    Args:
        settings: the recipe's `data:` block.
        renderer: renderer with the model's tokenizer and the block's `render` and `targets`.
        base: folder that relative paths start from.
        cache: folder for tokenised rows, which are read again for the same records, tokenizer and rendering alone.
        columns: columns that the recipe reads besides those of the renderer; they tell records apart, and all others
            are named in the report.

    Raises:
        DataError: the first record that cannot be used (with file and line), a row that is too long with
            `too_long: error`, an empty data set, or no target left to learn.
        RecipeError: a setting that is not understood.
    """
    return prepare_with_report(settings, renderer, base, cache, columns, collect=False)


def prepare_with_report(
    settings: DataSettings,
    renderer: Renderer,
    base: Path,
    cache: Path | None = None,
    columns: Sequence[str] = (),
    *,
    collect: bool,
) -> Prepared:
    """`prepare`, which with `collect` leaves out records that it cannot use and lists them in the report.

    With `collect`, the reason why training is impossible is the first warning of the report instead of an error.

    Raises:
        DataError: as `prepare`, unless `collect`.
        RecipeError: a setting that is not understood.
    """
    if settings.too_long not in POLICIES:
        raise RecipeError(f"data.too_long is `{settings.too_long}`.", f"Use one of {', '.join(POLICIES)}.")
    limit, policy = settings.max_tokens, settings.too_long
    if collect and policy == "error":
        policy = "drop"  # the report counts all rows that are too long, where a run stops at the first
    problems = Problems()
    try:
        division = _divide(settings, renderer.columns, columns, base, problems if collect else None)
    except DataError as error:
        if not collect:
            raise
        empty = DataReport(max_tokens=limit, policy=policy, **problems.facts())
        return Prepared([], [], [], {}, {name: [] for name in SPLITS}, empty.impossible(error))
    records = {record.id: record for record in chain.from_iterable(division.parts.values())}
    bounds = {name: limit for name, record in records.items() if is_long(record, limit)}
    rendered = _render([*records.values()], renderer, cache, problems if collect else None, bounds)
    # Rows are cut after the cache, which so serves every `max_tokens` and `too_long`.
    fitted = {}
    for name, part in division.parts.items():
        rows_by_record = [rendered[record.id].rows for record in part if record.id in rendered]
        fitted[name] = _fit(rows_by_record, records, limit, policy)
    first = fitted["train"].rows_by_record[:1]
    report = DataReport.of(
        division,
        fitted,
        max_tokens=limit,
        policy=policy,
        lengths=measure_lengths([*chain.from_iterable(cached.rows for cached in rendered.values())]),
        notes=_counted_notes(records, rendered, renderer),
        unread=_unread(records.values(), renderer, [*columns, *filter(None, [settings.group_by])]),
        clipped=sum(name in bounds and len(cached.rows[0]) > 2 * limit for name, cached in rendered.items()),
        **problems.facts(),
        previews=[renderer.preview(row) for row in chain.from_iterable(first)],
    )
    if fault := _nothing_to_learn(fitted["train"].rows, report):
        if not collect:
            raise fault
        report = report.impossible(fault)
    splits = {}
    for name, part in fitted.items():
        splits[name] = [record_rows[0].record for record_rows in part.rows_by_record]
    kept = {name: records[name] for name in chain.from_iterable(splits.values())}
    return Prepared(fitted["train"].rows, fitted["validation"].rows, fitted["test"].rows, kept, splits, report)


def _unread(records: Collection[Record], renderer: Renderer, columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    template = renderer.tokenizer.chat_template or ""
    return unread_columns(records, renderer.form, template, columns, shape_columns())


def split_settings(settings: DataSettings) -> tuple[dict[str, Source], dict[str, str | int | None]]:
    """Validation and test by name: those with a source of their own, and the shares of the training source."""
    sources: dict[str, Source] = {}
    shares: dict[str, str | int | None] = {}
    for name in SPLITS[1:]:
        setting = getattr(settings, name)
        shares[name] = setting if is_share(setting) else None
        if not is_share(setting):
            sources[name] = setting
    return sources, shares


def _divide(
    settings: DataSettings, prompt_columns: Sequence[str], columns: Sequence[str], base: Path, problems: Problems | None
) -> Division:
    """The records of all splits, and how much of each split is in train too."""
    sources, shares = split_settings(settings)
    every = tuple(dict.fromkeys((*prompt_columns, *columns)))
    read = _read(settings.train, base, every, problems)
    split = split_records(
        read,
        **shares,
        seed=settings.split_seed,
        deduplicate=settings.deduplicate,
        columns=every,
        prompt_columns=prompt_columns,
        group=settings.group_by,
    )
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    ids, count = {record.id for record in read}, len(read)
    trained = Trained.of([split.words[record.id] for record in split.train])
    leakage, notes = {}, [*split.notes]
    for name in SPLITS[1:]:
        if name in sources:
            records = [_renamed(record, name, ids) for record in _read(sources[name], base, every, problems)]
            count += len(records)
            ids |= {record.id for record in records}
            parts[name], leaks = _own_source(records, split, trained, prompt_columns, settings.group_by)
            leakage[name] = leaks.to_json()
            if copies := len(records) - len(set(identities(records, every))):
                notes.append(
                    f"{copies} of {len(records)} {name} records are copies of another one there; all are scored."
                )
        elif parts[name]:
            leakage[name] = _leaks_of_share(parts[name], split, trained).to_json()
    if settings.group_by is None:
        notes += divided_origins(parts, every)
    return Division(
        parts,
        read=count,
        duplicates=split.duplicates,
        near_duplicates=sum(size - 1 for size in split.groups),
        largest_group=max(split.groups, default=1),
        leakage=leakage,
        notes=notes,
    )


def _leaks_of_share(records: Sequence[Record], split: Split, trained: Trained) -> Leaks:
    """The leaks into a share of the training source: groups stay together, but chains that were divided do not."""
    near, parts = (
        _touched([split.chains[record.id][kind] for record in (*split.train, *records)], len(split.train))
        for kind in (0, 1)
    )
    words = [split.words[record.id] for record in records]
    return trained.leaks(words, records, near, parts)


def _own_source(
    records: list[Record], split: Split, trained: Trained, prompt_columns: Sequence[str], group: str | None
) -> tuple[list[Record], Leaks]:
    """The records of a split with a source of its own, with their groups, and the leaks into them."""
    own, train = words_of(records, prompt_columns), [split.words[record.id] for record in split.train]
    both = group_records([*split.train, *records], [*train, *own], group)
    border = len(train)
    near, related = _touched(both.near, border), _touched(both.parts, border)
    for members in both.groups:
        if members[0] < border:  # indices rise within a group: the first one tells whether train has a record in it
            related.update(index - border for index in members if index >= border)
    grouped = with_groups(records, group_records(records, own, group if _has(records, group) else None))
    return grouped, trained.leaks(own, records, near, related)


def _touched(chains: Sequence[int], border: int) -> set[int]:
    """The records from `border` on, counted from there, that are in a chain with one before it."""
    before = set(chains[:border])
    return {index for index, chain in enumerate(chains[border:]) if chain in before}


def _has(records: Sequence[Record], column: str | None) -> bool:
    return column is not None and any(record.fields.get(column) is not None for record in records)


def _read(source: Source, base: Path, columns: Sequence[str], problems: Problems | None) -> list[Record]:
    """The records of a source; without `problems` a record that cannot be used raises its error, else it is listed."""
    if problems is None:
        return load_records(source, base, columns)
    scanned = scan(source, base, columns)
    for error in scanned.problems:
        kinds = {NotUtf8: "not_utf8", EmptyAnswer: "empty", UnknownShape: "shape"}
        kinds |= dict.fromkeys((SourceError, EmptySource), "source")
        problems.add(kinds.get(type(error), "unreadable"), Problem.of(error, error.origin))
    problems.notes += scanned.notes
    if scanned.guess is not None:
        problems.guesses.append((source, scanned.guess))
    return scanned.records


def _counted_notes(records: Mapping[str, Record], rendered: Mapping[str, Cached], renderer: Renderer) -> dict[str, int]:
    return dict(Counter(chain.from_iterable(_notes(records[name], rendered[name], renderer) for name in rendered)))


def _notes(record: Record, cached: Cached, renderer: Renderer) -> Iterator[str]:
    """What reading the record changed, and what its rendering has to say."""
    yield from notes_of(record, renderer.form)
    yield from cached.notes


def _renamed(record: Record, split: str, ids: set[str]) -> Record:
    """The record under an id that is not among `ids`."""
    return replace(record, id=f"{split}/{record.id}") if record.id in ids else record


def _render(
    records: Sequence[Record],
    renderer: Renderer,
    cache: Path | None,
    problems: Problems | None,
    bounds: Mapping[str, int],
) -> dict[str, Cached]:
    """Record id → its rows and notes, from the cache if it has exactly these records.

    Args:
        bounds: by record id, the tokens that are kept of records far longer than that.
    """
    hashes = [content_hash(record, renderer.columns) for record in records]
    if bounds:  # rows of their beginnings serve this `max_tokens` alone
        hashes = [f"{name}:{bounds.get(record.id, '')}" for name, record in zip(hashes, records, strict=True)]
    stored = read_cache(cache, renderer, hashes) if cache is not None else None
    rendered: dict[str, Cached] = {}
    if stored is not None:
        for record, cached in zip(records, stored, strict=True):
            rendered[record.id] = replace(cached, rows=rows_of(record, cached.rows))
        return rendered
    for record in records:
        try:
            rendering = renderer.explain(record, bounds.get(record.id))
        except DataError as error:
            if problems is None:
                raise
            problems.add("unrendered", Problem.of(error, record.origin, record.id))
            continue
        rows = rows_of(record, [with_shared_weights(row) for row in rendering.rows])
        rendered[record.id] = Cached(rows, rendering.notes)
    # With a record left out, the file's name would promise rows that it does not have.
    if cache is not None and len(rendered) == len(records):
        write_cache(cache, renderer, hashes, list(rendered.values()))
    return rendered


def _fit(rows_by_record: Sequence[tuple[Row, ...]], records: Mapping[str, Record], limit: int, policy: str) -> Fitted:
    """The records of a split within `limit` tokens, by the policy; all rows of a record are kept, cut or dropped."""
    kept = []
    equal_pairs = dropped = truncated = no_target = 0
    for record_rows in rows_by_record:
        longest = max(len(row) for row in record_rows)
        # Two equal answers hold no preference; of a prompt far too long the answers are not there to be compared.
        same = len(record_rows) == 2 and numpy.array_equal(record_rows[0].ids, record_rows[1].ids)
        if same and record_rows[0].targets:
            equal_pairs += 1
        elif longest <= limit:
            kept.append(record_rows)
        elif policy == "error":
            record = records[record_rows[0].record]
            raise DataError(
                f"{record.origin}: record {record.id} has {longest} tokens, more than data.max_tokens {limit}.",
                "Raise `data.max_tokens`, or choose `data.too_long: drop` or `truncate`.",
            )
        elif policy == "drop":
            dropped += 1
        else:
            short = tuple(shortened(row, limit) for row in record_rows)
            # A pair with one answer cut away would compare an answer with nothing.
            if all(row.targets for row in short):
                kept.append(short)
                truncated += 1
            else:
                no_target += 1
    return Fitted(kept, dropped=dropped, truncated=truncated, no_target=no_target, equal_pairs=equal_pairs)


def _nothing_to_learn(train: Sequence[Row], report: DataReport) -> DataError | None:
    """The error of training rows without a target; None if there is a target."""
    if not train:
        return DataError(
            f"No training record is left: {report.dropped.get('train', 0)} have more than data.max_tokens "
            f"{report.max_tokens} tokens (the median has {report.lengths.get('p50', 0)}), {report.no_target} lost "
            f"their answer to truncation, {report.equal_pairs} are pairs of equal answers.",
            "Divide or shorten them, or raise `data.max_tokens` if the model reads more.",
        )
    if not any(row.targets for row in train):
        return DataError(
            "Everything is masked: no token of any training row is a target, so nothing could be learned.",
            "Look at `data.targets` and at the mask preview of `luthier check`.",
        )
    return None
