"""The examination of a data set in numbers and lists that can be stored and printed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any

import numpy

from luthier.data.shapes import label_of, seems_bad
from luthier.types import Record, Row

FEW_TEST_RECORDS = 50
ORIGIN = re.compile(r"(.+?:\d+): (.*)", re.DOTALL)  # file and line, then the message


@dataclass(frozen=True)
class Complaint:
    """A mistake that several records share: their files and lines, the message, and what to do about it."""

    origins: list[str]
    message: str
    hint: str | None


def grouped(problems: Sequence[str]) -> list[Complaint]:
    """Problems as complaints, each of which joins those that differ in file and line alone, in order of the first."""
    complaints: dict[str, Complaint] = {}
    for problem in problems:
        match = ORIGIN.match(problem)
        origin, text = match.groups() if match else ("", problem)
        message, _, hint = text.partition("\n")
        complaint = complaints.setdefault(text, Complaint([], message, hint.strip() or None))
        complaint.origins.append(origin)
    return list(complaints.values())


@dataclass(frozen=True)
class Division:
    """Records by split, and counts of duplicates and of leakage between the splits.

    Attributes:
        parts: records by split.
        read: number of records that could be read, of all sources.
        duplicates: number of exact copies of another record.
        near_duplicates: number of records that nearly repeat another one, or are a part of the same whole.
        largest_group: size of the largest group of such records.
        leakage: by split, how many of its records are in train too, by the kinds of `leaks.Leaks`, with examples.
        notes: sentences on groups that a split could not follow, or that made it uneven.
    """

    parts: Mapping[str, list[Record]]
    read: int
    duplicates: int
    near_duplicates: int
    largest_group: int
    leakage: dict[str, dict[str, Any]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Fitted:
    """The records of a split within `data.max_tokens`, each as its rows, and the numbers of all others."""

    rows_by_record: list[tuple[Row, ...]]
    dropped: int
    truncated: int
    no_target: int
    equal_pairs: int

    @property
    def rows(self) -> list[Row]:
        return [*chain.from_iterable(self.rows_by_record)]


@dataclass(frozen=True)
class DataReport:
    """The examination of one `data:` block.

    Attributes:
        counts: records per split that are left.
        lengths: tokens per row before truncation (p50, p95, p99, max), over all splits.
        dropped, truncated, leakage: per split.
        split_notes: sentences on groups that a split could not follow, or that made it uneven.
        equal_pairs: dropped preference pairs of two equal answers.
        labelled_bad: training records with `label: false`.
        seem_bad: training records whose label seems to mean `false` in other words, which no objective reads.
        problems: errors of lines that cannot be used, by kind (`unreadable`, `not_utf8`, `empty`, `unrendered`), each
            with its hint on a line of its own; empty after `prepare`, which stops at the first.
        notes: what reading and rendering changed or could not prove, with the number of records.
        unread: columns, and keys of messages, that nothing reads, with `records` and whether they hold `text`.
        previews: rows of the first training record (two of a pair), token by token, with True on targets.
    """

    read: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    max_tokens: int = 0
    policy: str = "drop"
    dropped: dict[str, int] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)
    no_target: int = 0
    equal_pairs: int = 0
    labelled_bad: int = 0
    seem_bad: int = 0
    duplicates: int = 0
    near_duplicates: int = 0
    largest_group: int = 0
    tokens: int = 0
    target_tokens: int = 0
    leakage: dict[str, dict[str, Any]] = field(default_factory=dict)
    split_notes: list[str] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    unread: dict[str, dict[str, Any]] = field(default_factory=dict)
    previews: list[list[tuple[str, bool]]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, division: Division, fitted: Mapping[str, Fitted], **facts: Any) -> DataReport:
        """The report of divided and fitted records; `facts` are further fields of the report."""
        read = [*chain.from_iterable(division.parts.values())]
        records = {record.id: record for record in read}
        trained = [records[record_rows[0].record] for record_rows in fitted["train"].rows_by_record]
        rows = fitted["train"].rows
        report = cls(
            read=division.read,
            counts={name: len(part.rows_by_record) for name, part in fitted.items()},
            shapes=dict(Counter(record.shape for record in read)),
            dropped={name: part.dropped for name, part in fitted.items() if part.dropped},
            truncated={name: part.truncated for name, part in fitted.items() if part.truncated},
            no_target=sum(part.no_target for part in fitted.values()),
            equal_pairs=sum(part.equal_pairs for part in fitted.values()),
            labelled_bad=sum(label_of(record) is False for record in trained),
            seem_bad=sum(map(seems_bad, trained)),
            duplicates=division.duplicates,
            near_duplicates=division.near_duplicates,
            largest_group=division.largest_group,
            tokens=sum(len(row) for row in rows),
            target_tokens=sum(row.targets for row in rows),
            leakage=division.leakage,
            split_notes=list(division.notes),
            **facts,
        )
        return replace(report, warnings=find_warnings(report))

    def impossible(self, fault: str) -> DataReport:
        """The same report with `fault`, the reason why training is impossible, as the first warning."""
        return replace(self, warnings=[fault, *find_warnings(self)])

    @property
    def target_share(self) -> float:
        """Share of the training tokens that are targets."""
        return self.target_tokens / self.tokens if self.tokens else 0.0

    def to_json(self) -> dict[str, Any]:
        """The report as lists, mappings, texts and numbers, with `target_share`."""
        return asdict(self) | {"target_share": self.target_share}


def measure_lengths(rows: Sequence[Row]) -> dict[str, int]:
    """Quantiles of the rows' lengths in tokens; empty without rows."""
    if not rows:
        return {}
    lengths = numpy.array([len(row) for row in rows])
    p50, p95, p99 = (int(numpy.ceil(numpy.quantile(lengths, q))) for q in (0.5, 0.95, 0.99))
    return {"p50": p50, "p95": p95, "p99": p99, "max": int(lengths.max())}


def find_warnings(report: DataReport) -> list[str]:
    """Warnings before a training, each with what to do about it."""
    return [
        *_about_length(report),
        *_about_targets(report),
        *_about_pairs(report),
        *_about_labels(report),
        *_about_splits(report),
        *(f"{count} records have {note}." for note, count in report.notes.items()),
        *_about_unread(report.unread),
        *_about_problems(report.problems),
    ]


def _about_length(report: DataReport) -> list[str]:
    lost, cut = sum(report.dropped.values()), sum(report.truncated.values())
    total = sum(report.counts.values()) + lost + report.no_target + report.equal_pairs
    if not total or (lost + cut) / total < 0.005:
        return []
    verb, count = ("truncates", cut) if report.policy == "truncate" else ("drops", lost)
    enough = 1 << (report.lengths["p99"] - 1).bit_length()  # the power of two at or above the 99% quantile
    keep = f"`data.max_tokens: {enough}` keeps at least 99% whole"
    return [
        f"max_tokens {report.max_tokens} {verb} {count} of {total} records ({count / total:.0%}); the longest has "
        f"{report.lengths['max']} tokens, and {keep}."
    ]


def _about_targets(report: DataReport) -> list[str]:
    warnings = []
    if report.no_target:
        warnings.append(f"{report.no_target} records lost their whole answer to truncation and were dropped.")
    if report.tokens and report.target_share < 0.05:
        warnings.append(
            f"Only {report.target_share:.1%} of the training tokens are targets: most of the computing is reading "
            "prompts. Shorten the prompts if you can."
        )
    return warnings


def _about_pairs(report: DataReport) -> list[str]:
    if not report.equal_pairs:
        return []
    return [f"{report.equal_pairs} pairs have a chosen and a rejected answer that are the same; they were dropped."]


def _about_labels(report: DataReport) -> list[str]:
    warnings = []
    if report.labelled_bad:
        warnings.append(
            f"{report.labelled_bad} of {report.counts['train']} training records have `label: false`: `kto` learns from"
            " them, objectives that read no labels leave them out."
        )
    if report.seem_bad:
        warnings.append(
            f"{report.seem_bad} of {report.counts['train']} training records have a `label` that reads as bad and is"
            " not `false`: they are learned like all others. Write labels as true or false, without quotes, if they"
            " say which answers are good."
        )
    return warnings


def _about_splits(report: DataReport) -> list[str]:
    warnings = []
    if report.duplicates:
        warnings.append(f"{report.duplicates} exact duplicates; `data.deduplicate` decides whether they are removed.")
    for name, leak in report.leakage.items():
        if leaks := _leaks_in_words(leak):
            warnings.append(
                f"Of {report.counts.get(name, 0)} {name} records {leaks} (for example {', '.join(leak['examples'])}): "
                f"{name} scores will flatter. Remove them from one side."
            )
    warnings += report.split_notes
    if 0 < report.counts.get("test", 0) < FEW_TEST_RECORDS:
        warnings.append(f"Only {report.counts['test']} test records: scores will have wide intervals.")
    return warnings


def _leaks_in_words(leak: Mapping[str, Any]) -> str:
    """What a split shares with train, as a list of clauses; empty if nothing is shared."""
    words = {
        "exact": "{} have a question that is also in train",
        "near": "{} nearly so",
        "related": "{} are parts of a conversation, a document or a group that is also in train",
        "answers": "{} have an answer that is trained behind the same question",
    }
    return ", ".join(text.format(leak[kind]) for kind, text in words.items() if leak.get(kind))


def _about_unread(unread: Mapping[str, Mapping[str, Any]]) -> list[str]:
    texts = [f"`{name}` ({column['records']} records)" for name, column in unread.items() if column["text"]]
    if not texts:
        return []
    return [
        f"{', '.join(texts)}: text that nothing in the recipe reads. If the question is in several columns, join them: "
        "`columns: {prompt: [first, second]}`; a format string in `data.render` reads any column."
    ]


def _about_problems(problems: Mapping[str, Sequence[str]]) -> list[str]:
    words = {
        "unreadable": "lines cannot be read",
        "not_utf8": "lines are not UTF-8",
        "empty": "records have no answer to learn from",
        "unrendered": "records cannot be rendered for this model",
    }
    warnings = []
    for kind, errors in problems.items():
        if errors:
            warnings.append(f"{len(errors)} {words[kind]}; the first: {errors[0].splitlines()[0]}")
    return warnings
