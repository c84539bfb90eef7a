"""Answers without an advantage: counted in every denominator, and read by no forward."""

import numpy
import pytest
import torch

from luthier import parts
from luthier.conformance.base import apart
from luthier.conformance.tiny import tiny_rows, with_streams
from luthier.conformance.training import trained
from luthier.engine.trainer import Batching
from luthier.models.policy import TokenPolicy
from luthier.objectives.sum import build_objective
from luthier.tuners.full import Full
from luthier.types import Stream

WHOLE = Batching(8, 10_000)


def rows_with(advantages):
    """Tiny rows with one advantage each."""
    rows = with_streams(tiny_rows(len(advantages)), ["old_logprobs", "logprobs:initial"])
    for row, value in zip(rows, advantages, strict=True):
        row.streams["advantages"] = Stream(numpy.full(len(row), value, dtype=numpy.float32), "token")
    return rows


@pytest.fixture
def read(monkeypatch):
    """Records that were read by a forward."""
    forwarded = []
    plain = TokenPolicy.hidden

    def hidden(self, batch, *more):
        forwarded.extend(batch.examples)
        return plain(self, batch, *more)

    monkeypatch.setattr(TokenPolicy, "hidden", hidden)
    return forwarded


SOME = [1.0, 0.0, -0.5, 0.0, 0.0, 2.0]
OBJECTIVES = [
    {"kind": "grpo"},
    {"kind": "grpo", "norm": "sequence"},
    {"kind": "grpo", "norm": "constant"},
    {"kind": "rloo"},
]


def run(spec, rows, batching=WHOLE):
    events = []
    change = trained(build_objective(spec), Full(), batching, rows, observe=events.append)
    return change, events[0]


@pytest.mark.parametrize("batching", [WHOLE, Batching(8, 1), Batching(8, 40, "shared")])
@pytest.mark.parametrize("spec", OBJECTIVES, ids=str)
def test_the_gradient_and_the_loss_are_as_if_all_had_been_read(monkeypatch, read, spec, batching):
    rows = rows_with(SOME)
    change, event = run(spec, rows, batching)
    assert set(read) == {rows[index].id for index in (0, 2, 5)}
    monkeypatch.setattr(type(parts.build("objective", spec)), "has_gradient", lambda self, row: True)
    everything, other = run(spec, rows, batching)
    assert set(read) == {row.id for row in rows}
    assert apart(everything, change) < 1e-9 and event["loss"] == pytest.approx(other["loss"], abs=1e-9)
    assert event["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-9)


def test_meters_are_means_over_what_was_read(read):
    rows = rows_with(SOME)
    alone = rows_with(SOME[:1])
    _, event = run({"kind": "grpo"}, [rows[0], *rows[3:5]])
    _, wanted = run({"kind": "grpo"}, alone)
    assert event["ratio"] == pytest.approx(wanted["ratio"])


def test_a_divergence_moves_every_answer(read):
    rows = rows_with(SOME)
    run({"kind": "grpo", "kl_coefficient": 0.1}, rows)
    assert set(read) == {row.id for row in rows}


def test_a_sum_reads_what_one_of_its_members_moves(read):
    rows = rows_with(SOME)
    run([{"objective": {"kind": name}, "coefficient": 1.0} for name in ("grpo", "sft")], rows)
    assert set(read) == {row.id for row in rows}


def test_an_update_that_would_read_nothing_reads_everything(read):
    rows = rows_with([0.0, 0.0])
    change, _ = run({"kind": "grpo"}, rows)
    assert set(read) == {row.id for row in rows}
    assert all(not torch.any(tensor) for tensor in change.values())
