"""Scores of given continuations equal those of a plain full forward."""

import random

import numpy
import pytest
import torch

from luthier.errors import DataError
from luthier.sampling import scoring
from luthier.sampling.scoring import choice_logprobs, sequence_logprobs
from luthier.types import Row, Stream


def plain(module, ids, first):
    """Log-probability of ids[first:] by one forward over the whole."""
    with torch.no_grad():
        values = module(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(values[position - 1, ids[position]].item() for position in range(first, len(ids)))


def random_ids(count, longest):
    draw = random.Random(count)
    return [[draw.randrange(128) for _ in range(draw.randrange(1, longest))] for _ in range(count)]


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_choices_equal_the_plain_forward(module, batch):
    prompts = random_ids(9, 30)
    choices = [random_ids(2 + index % 3, 8) for index in range(9)]
    scores = choice_logprobs(module, prompts, choices, batch=batch)
    wanted = [
        [plain(module, prompt + choice, len(prompt)) for choice in options]
        for prompt, options in zip(prompts, choices, strict=True)
    ]
    for computed, other in zip(scores, wanted, strict=True):
        assert computed == pytest.approx(other, abs=1e-4)


def test_choices_of_one_token_and_small_budgets(module, monkeypatch):
    prompts, choices = random_ids(6, 20), [[[5], [6, 7]]] * 3 + [[[9], [10]]] * 3
    wanted = choice_logprobs(module, prompts, choices)
    monkeypatch.setattr(scoring, "LOGIT_BYTES", 1)
    progress = []
    assert choice_logprobs(module, prompts, choices, progress=progress.append) == [
        pytest.approx(values, abs=1e-5) for values in wanted
    ]
    assert len(progress) > 2 and progress[-1] == 6


def test_a_choice_beyond_the_context_names_the_record(module):
    with pytest.raises(DataError, match="Record long"):
        choice_logprobs(module, [[3] * 250], [[[1], [2] * 8]], records=["long"])


def test_rows_equal_the_plain_forward(module):
    draw = numpy.random.default_rng(0)
    rows = []
    for index, ids in enumerate(random_ids(11, 40)):
        weights = (draw.random(len(ids)) < 0.5).astype("float32") * 2.5
        rows.append(Row(f"r{index}", numpy.array(ids, dtype="int32"), {"weights": Stream(weights, "token")}))
    sums = sequence_logprobs(module, rows)
    for row, (total, count) in zip(rows, sums, strict=True):
        with torch.no_grad():
            values = module(torch.tensor([row.ids.tolist()])).logits[0].double().log_softmax(-1)
        places = [position for position in range(1, len(row)) if row.streams["weights"].values[position] != 0]
        assert count == len(places) == row.targets
        assert total == pytest.approx(sum(values[p - 1, row.ids[p]].item() for p in places), abs=1e-4)
