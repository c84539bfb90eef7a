"""Rows that share a prompt: lines, their batch, and what a model and a score pass make of it."""

from collections import Counter
from dataclasses import replace

import numpy
import pytest
import torch

from luthier.conformance.tiny import tiny_model, tiny_pairs, tiny_rows, with_common_prompts
from luthier.data.batches import (
    LINE,
    collate,
    group_by_record,
    line_length,
    lines_of,
    micro_batches,
    positions,
    prompt_length,
)
from luthier.engine.score import score
from luthier.models.policy import TokenPolicy
from luthier.types import Row, Stream


def answers(prompt: list[int], *lengths: int, start: int = 0) -> list[Row]:
    """Rows of one prompt with answers of these lengths."""
    rows = []
    for index, length in enumerate(lengths):
        own = [(11 * start + 7 * index + 3 * offset) % 61 for offset in range(length)]
        weights = numpy.repeat(numpy.array([0, 1], numpy.float32), [len(prompt), length])
        ids = numpy.array([*prompt, *own], dtype=numpy.int32)
        rows.append(Row(f"{prompt[0]}/{start + index}", ids, {"weights": Stream(weights, "token")}))
    return rows


def test_a_line_holds_its_prompt_once():
    (micro,) = micro_batches(answers([1, 2, 3], 4, 2, 3), 100, "shared")
    assert [(len(row), row.shared) for row in micro] == [(7, 0), (6, 3), (5, 3)]
    batch = collate(micro, "shared")
    assert batch.ids.shape == (1, 3 + 4 + 3 + 2)
    assert batch.prompts.tolist() == [[True] * 3 + [False] * 9]
    assert batch.position_of.tolist() == [[0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 3, 4]]
    assert batch.example_of.tolist() == [[0] * 7 + [1] * 3 + [2] * 2]
    rows, before = batch.before_targets()
    assert before.tolist() == [2, 3, 4, 5, 2, 7, 8, 2, 10] and not rows.any()


def test_several_prompts_make_several_lines_and_padding_belongs_to_nobody():
    rows = [*answers([1, 2, 3], 4, 2), *answers([5, 6], 3), *answers([7, 8, 9, 10], 2, 2)]
    (micro,) = micro_batches(rows, 100, "shared")
    assert [line_length(line) for line in lines_of(micro)] == [9, 8, 5]
    assert positions(micro, "shared") == 27
    batch = collate(micro, "shared", pad_id=60)
    assert batch.ids.shape == (3, 9)
    assert (batch.ids[2, 5:] == 60).all() and (batch.example_of[2, 5:] == -1).all()
    assert len(batch.targets()[0]) == 4 + 2 + 3 + 2 + 2


def test_what_does_not_pay_is_not_shared():
    long_answers = answers([1, 2], 9, 9)  # more than four times the prompt
    assert all(not row.shared for micro in micro_batches(long_answers, 1000, "shared") for row in micro)
    assert any(row.shared for micro in micro_batches(answers([1, 2], 8, 8), 1000, "shared") for row in micro)
    wide = answers(list(range(400)), 300, 300, 300, 300)
    for micro in micro_batches(wide, 100_000, "shared"):
        assert all(line_length(line) <= LINE for line in lines_of(micro))
    assert collate(tiny_rows(4), "shared").prompts is None


@pytest.mark.parametrize("tokens", [1, 40, 64, 10_000])
@pytest.mark.parametrize("rows", [tiny_pairs(20), with_common_prompts(tiny_rows(20))], ids=["pairs", "rows"])
def test_every_row_once_atoms_whole_and_the_limit_kept(rows, tokens):
    cut = micro_batches(rows, tokens, "shared")
    assert Counter(row.id for micro in cut for row in micro) == Counter(row.id for row in rows)
    assert sum(row.shared for micro in cut for row in micro) > 0 or tokens == 1
    for micro in cut:
        assert positions(micro, "shared") <= tokens or len({row.record for row in micro}) == 1
        assert micro[0].shared == 0
    apart = [{row.record for row in micro} for micro in cut]
    assert sum(map(len, apart)) == len(group_by_record(rows))
    assert cut == micro_batches(rows[::-1], tokens, "shared")


def test_rows_without_targets_or_tokens_stand_alone():
    silent = [replace(row, streams={"weights": Stream(0 * row.streams["weights"].values, "token")}) for row in ROWS]
    assert all(not row.shared for micro in micro_batches(silent, 1000, "shared") for row in micro)
    assert prompt_length(silent[0]) == len(silent[0])
    nothing = Row("image", numpy.array([], dtype=numpy.int32), {"pixels": Stream(numpy.zeros(4), "row")})
    assert micro_batches([nothing], 10, "shared") == [[nothing]]


ROWS = answers([1, 2, 3, 4], 3, 3, 5, 1)


def test_a_score_pass_gives_each_row_its_own_values_in_every_layout():
    policy = TokenPolicy(tiny_model())
    rows = [*ROWS, *answers([9, 8, 7], 4, 2, start=3), *tiny_rows(3)]
    padded, shared = (score(policy, rows, ["logprobs", "entropy"], 200, layout) for layout in ("padded", "shared"))
    for name in ("logprobs", "entropy"):
        for row in rows:
            assert numpy.abs(padded[name][row.id] - shared[name][row.id]).max() < 1e-12
    assert any(padded["logprobs"][row.id].any() for row in rows)


def test_the_mask_lets_answers_see_the_prompt_and_themselves_only():
    (micro,) = micro_batches(ROWS, 100, "shared")
    batch = collate(micro, "shared")
    policy = TokenPolicy(tiny_model())
    embeddings = policy.embed(batch.ids).detach().requires_grad_()
    rows, columns = batch.targets()
    hidden = policy.hidden(batch, embeddings)
    for example in range(len(ROWS)):
        (gradient,) = torch.autograd.grad(
            hidden[batch.example_of[rows, columns] == example].sum(), embeddings, retain_graph=True
        )
        touched = set(gradient.abs().sum(-1)[0].nonzero()[:, 0].tolist())
        own = ((batch.example_of[0] == example) | batch.prompts[0]).nonzero()[:, 0].tolist()
        assert touched == set(own) - {max(own)}
