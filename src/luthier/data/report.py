"""The examination of a data set in numbers and lists that can be stored and printed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any

import numpy

from luthier.data.shapes import has_reference, label_of, seems_bad
from luthier.errors import LuthierError
from luthier.records.guess import Guess
from luthier.types import Record, Row

FEW_TEST_RECORDS = 50
MARK = re.compile(r"weight|train|loss|mask|learn", re.IGNORECASE)
"""Words in the names of keys that may say which answers are learned."""
PROBLEMS = {
    "source": ("source", "cannot be read"),
    "unreadable": ("line", "cannot be read"),
    "shape": ("record", "of no known shape"),
    "not_utf8": ("line", "not UTF-8"),
    "empty": ("record", "without an answer to learn from"),
    "unrendered": ("record", "refused by this model's template or tokenizer"),
}
"""Kind of problem → what has it, and the problem in words."""


@dataclass(frozen=True)
class Problem:
    """Why a line or a source cannot be used: its file and line (empty for a whole source), and what to do."""

    origin: str
    message: str
    hint: str | None = None

    @classmethod
    def of(cls, error: LuthierError, origin: str, record: str = "") -> Problem:
        """The problem of an error; neither its origin nor the id of its record is repeated in the message."""
        message = error.message.removeprefix(f"{origin}: ").removeprefix(f"record {record}: ")
        return cls(origin, message, error.hint)

    def __str__(self) -> str:
        text = f"{self.origin}: {self.message}" if self.origin else self.message
        return text if self.hint is None else f"{text}\n  {self.hint}"


@dataclass(frozen=True)
class Complaint:
    """A mistake that several records share: their files and lines, the first message, and what to do about it."""

    origins: list[str]
    message: str
    hint: str | None


def grouped(problems: Sequence[Problem]) -> list[Complaint]:
    """Problems as complaints, each of which joins those of one kind: equal but for line, numbers and contents."""
    complaints: dict[tuple[str, str | None], Complaint] = {}
    for problem in problems:
        # A record's own words would make a complaint of each record.
        text = re.sub(r"'(?:[^'\\]|\\.){12,}'|\"(?:[^\"\\]|\\.){12,}\"", "…", problem.message)
        kind = re.sub(r"\b(?:\d+|0x[0-9a-f]+)\b", "#", re.sub(r"(found \w+) \(.*\)", r"\1", text, flags=re.DOTALL))
        complaint = complaints.setdefault((kind, problem.hint), Complaint([], problem.message, problem.hint))
        complaint.origins.append(problem.origin)
    return list(complaints.values())


def counted(kind: str, number: int) -> str:
    """`3 lines not UTF-8`."""
    noun, words = PROBLEMS[kind]
    return f"{number:,} {noun if number == 1 else noun + 's'} {words}"


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
        unscored: per split, held-out records whose own answer is labelled bad or marked as context.
        seem_bad: training records whose label seems to mean `false` in other words, which no objective reads.
        problems: sources, lines and records that cannot be used, by the kinds of PROBLEMS; empty after `prepare`, which
            stops at the first.
        sources: what was taken for granted when the files were read.
        guesses: sources with records of unknown shape, and the columns that these probably mean.
        clipped: records so long that only their beginning was tokenised; `lengths` counts them by that.
        context: the most tokens that the model reads; None if its config does not say.
        fault: why training is impossible, with what to do; empty if it is possible.
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
    unscored: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    near_duplicates: int = 0
    largest_group: int = 0
    tokens: int = 0
    target_tokens: int = 0
    leakage: dict[str, dict[str, Any]] = field(default_factory=dict)
    split_notes: list[str] = field(default_factory=list)
    problems: dict[str, list[Problem]] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    guesses: list[tuple[Any, Guess]] = field(default_factory=list)
    clipped: int = 0
    context: int | None = None
    fault: tuple[str, str | None] = ("", None)
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
            unscored=_unscored(fitted, records),
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

    def impossible(self, fault: LuthierError) -> DataReport:
        """The same report with the reason why training is impossible, which is the first warning."""
        return self.known(fault=(fault.message, fault.hint))

    def known(self, **facts: Any) -> DataReport:
        """The same report with further facts, and the warnings that follow."""
        changed = replace(self, **facts)
        return replace(changed, warnings=find_warnings(changed))

    @property
    def unusable(self) -> int:
        """Number of lines and records that cannot be used."""
        return sum(len(problems) for kind, problems in self.problems.items() if kind != "source")

    @property
    def target_share(self) -> float:
        """Share of the training tokens that are targets."""
        return self.target_tokens / self.tokens if self.tokens else 0.0

    def to_json(self) -> dict[str, Any]:
        """The report as lists, mappings, texts and numbers, with `target_share`."""
        return asdict(self) | {"target_share": self.target_share}


def _unscored(fitted: Mapping[str, Fitted], records: Mapping[str, Record]) -> dict[str, int]:
    """Held-out records without a reference, by split."""
    counts = {}
    for name, part in fitted.items():
        held = [records[record_rows[0].record] for record_rows in part.rows_by_record]
        counts[name] = sum(not has_reference(record) for record in held)
    return {name: count for name, count in counts.items() if count and name != "train"}


def measure_lengths(rows: Sequence[Row]) -> dict[str, int]:
    """Quantiles of the rows' lengths in tokens; empty without rows."""
    if not rows:
        return {}
    lengths = numpy.array([len(row) for row in rows])
    p50, p95, p99 = (int(numpy.ceil(numpy.quantile(lengths, q))) for q in (0.5, 0.95, 0.99))
    return {"p50": p50, "p95": p95, "p99": p99, "max": int(lengths.max())}


def find_warnings(report: DataReport) -> list[str]:
    """Warnings before a training, each with what to do about it."""
    fault = "\n  ".join(filter(None, report.fault))
    return [
        *([fault] if fault else []),
        *_about_sources(report),
        *_about_length(report),
        *_about_targets(report),
        *_about_pairs(report),
        *_about_labels(report),
        *_about_splits(report),
        *(f"{count} records have {note}." for note, count in report.notes.items()),
        *_about_unread(report.unread),
        *about_problems(report),
    ]


def _about_sources(report: DataReport) -> list[str]:
    warnings = [f"{note}." for note in report.sources]
    if report.clipped:
        warnings.append(
            f"{report.clipped} records are so much longer than data.max_tokens {report.max_tokens} that only their "
            "beginning was tokenised; their lengths are at least those shown."
        )
    return warnings


def _about_length(report: DataReport) -> list[str]:
    lost, cut = sum(report.dropped.values()), sum(report.truncated.values())
    total = sum(report.counts.values()) + lost + report.no_target + report.equal_pairs
    if not total or (lost + cut) / total < 0.005:
        return []
    verb, count = ("truncates", cut) if report.policy == "truncate" else ("drops", lost)
    return [
        f"max_tokens {report.max_tokens} {verb} {count} of {total} records ({count / total:.0%}); the longest has "
        f"{report.lengths['max']} tokens{_enough(report)}."
    ]


def _enough(report: DataReport) -> str:
    """The advice of a greater `data.max_tokens`, never above what the model reads."""
    p99, context = report.lengths["p99"], report.context
    enough = 1 << (p99 - 1).bit_length()  # the power of two at or above the 99% quantile
    if context is not None and p99 > context:
        return (
            f", and the model reads at most {context}: divide longer records"
            if report.max_tokens >= context
            else f", and the model reads at most {context}: `data.max_tokens: {context}` keeps what it can read, and "
            "longer records must be divided"
        )
    enough = enough if context is None else min(enough, context)
    return f", and `data.max_tokens: {enough}` keeps at least 99% whole" if enough > report.max_tokens else ""


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
    for name, count in report.unscored.items():
        warnings.append(
            f"{count} of {report.counts[name]} {name} records have `label: false` or a last answer that is not to be"
            " learned: they are not scored."
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
    texts, marks = [], []
    for name, column in unread.items():
        words = f"`{name}` ({column['records']} records)"
        if column["text"]:
            texts.append(words)
        elif name.startswith("messages[].") and MARK.search(name):
            marks.append(words)
    warnings = []
    if marks:
        warnings.append(
            f"{', '.join(marks)}: nothing reads it. If it says which answers are learned, call it `weight`, `train`,"
            " `loss` or `masked`."
        )
    if not texts:
        return warnings
    return [
        *warnings,
        f"{', '.join(texts)}: text that nothing in the recipe reads. If the question is in several columns, join them: "
        "`columns: {prompt: [first, second]}`; a format string in `data.render` reads any column.",
    ]


def about_problems(report: DataReport) -> list[str]:
    """A warning for each kind of problem, with the first of them."""
    problems = report.problems.items()
    return [f"{counted(kind, len(some))}; the first: {str(some[0]).splitlines()[0]}" for kind, some in problems if some]
