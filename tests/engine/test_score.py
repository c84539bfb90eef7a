"""The score pass: values at targets, by record, cached by what they depend on."""

from dataclasses import replace

import numpy
import pytest
import torch

from luthier import parts
from luthier.conformance.base import apart
from luthier.conformance.tiny import tiny_model, tiny_rows
from luthier.conformance.training import trained
from luthier.data.batches import collate
from luthier.engine.score import cached_column, column_key, score, with_column
from luthier.engine.trainer import Batching
from luthier.errors import RecipeError
from luthier.models.policy import TokenPolicy
from luthier.objectives.base import SequenceObjective
from luthier.types import Stream

ROWS = tiny_rows()


def test_values_are_those_of_full_logits():
    model = tiny_model()
    columns = score(TokenPolicy(model), ROWS, ["logprobs", "entropy"], 50)
    for row in ROWS:
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=torch.from_numpy(row.ids).long()[None]).logits[0], -1)
        targets = row.streams["weights"].values != 0
        targets[0] = False
        for position in range(len(row)):
            wanted = float(log_p[position - 1, row.ids[position]]) if targets[position] else 0.0
            assert abs(columns["logprobs"][row.id][position] - wanted) < 1e-6
            wanted = float(-(log_p[position - 1].exp() * log_p[position - 1]).sum()) if targets[position] else 0.0
            assert abs(columns["entropy"][row.id][position] - wanted) < 1e-6


def test_modes_and_gradients_are_left_alone():
    model = tiny_model().train()
    score(TokenPolicy(model), ROWS, ["logprobs"], 50)
    assert model.training and all(p.grad is None for p in model.parameters())


def test_rows_with_and_without_a_label_share_a_batch():
    model, label = tiny_model(), {"preferred": Stream(numpy.float32(0), "row")}
    plain = score(TokenPolicy(model), ROWS, ["logprobs"], 10_000)["logprobs"]
    for labelled in ROWS:
        rows = [replace(row, streams={**row.streams, **label}) if row is labelled else row for row in ROWS]
        mixed = score(TokenPolicy(model), rows, ["logprobs"], 10_000)["logprobs"]
        assert all(numpy.array_equal(mixed[row.id], plain[row.id]) for row in ROWS)


def test_unknown_values_are_refused():
    with pytest.raises(RecipeError, match="cannot give `surprise`"):
        score(TokenPolicy(tiny_model()), ROWS, ["surprise"], 50)


class Margin(SequenceObjective):
    """A log-ratio against the reference, per record."""

    READS = ("logprobs:initial",)

    def sequence_loss(self, view):
        return -torch.nn.functional.logsigmoid(view.logprob - view.reference_logprob["initial"])


def test_a_column_travels_through_every_layout_as_a_stream():
    column = score(TokenPolicy(tiny_model(seed=5)), ROWS, ["logprobs"], 50)["logprobs"]
    rows = with_column(ROWS, "logprobs:initial", column)
    assert collate(rows, "packed").streams["logprobs:initial"].values.shape == collate(rows, "packed").ids.shape
    whole = trained(Margin(), parts.build("tuner", "full"), Batching(8, 10_000), rows=rows)
    for batching in (Batching(8, 1), Batching(8, 10_000, "padded", "left"), Batching(8, 40, "packed")):
        assert apart(whole, trained(Margin(), parts.build("tuner", "full"), batching, rows=rows)) < 1e-9
    other = with_column(ROWS, "logprobs:initial", {name: values - 1 for name, values in column.items()})
    assert apart(whole, trained(Margin(), parts.build("tuner", "full"), Batching(8, 10_000), rows=other)) > 1e-3


def test_computed_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"a/b": numpy.arange(3.0), "file": numpy.ones(2)}

    for _ in range(2):
        column = cached_column(tmp_path / "x" / "key.npz", compute)
        assert {name: values.tolist() for name, values in column.items()} == {"a/b": [0, 1, 2], "file": [1, 1]}
    assert len(calls) == 1
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["key.npz"]


def test_the_key_depends_on_weights_type_ids_and_targets():
    keys = {
        column_key("w", "float32", ROWS),
        column_key("v", "float32", ROWS),
        column_key("w", "bfloat16", ROWS),
        column_key("w", "float32", ROWS[1:]),
        column_key("w", "float32", tiny_rows(targets=False)),
    }
    assert len(keys) == 5 and column_key("w", "float32", tiny_rows()) in keys
