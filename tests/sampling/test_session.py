"""A session's rows get the tokens they would get alone, however they were opened, forked, extended or stepped."""

import pytest
import torch

from luthier.errors import DataError, ModelError
from luthier.sampling.cache import Slots
from luthier.sampling.check import CHECKED
from luthier.sampling.native import generate
from luthier.sampling.session import Session
from luthier.types import Sampling

END = set(range(2, 14))
WARM = Sampling(max_new_tokens=20, temperature=1.0)


def alone(module, prompt, seed, new=20, end=frozenset()):
    return generate(module, [prompt], end_ids=set(end), max_new_tokens=new, temperature=1.0, seeds=[seed])[0].ids


def test_rows_opened_at_different_times_equal_rows_alone(module):
    session = Session(module, WARM, end_ids=set())
    first = session.open([20, 30, 40], [1, 2])
    session.step(5)
    later = session.open([50] * 30, [3])  # longer than what the others have used: they move to the right
    assert session.step(15) == first
    assert later[0].finish is None and session.step(99) == later
    assert [row.ids for row in first] == [alone(module, [20, 30, 40], 1), alone(module, [20, 30, 40], 2)]
    assert later[0].ids == alone(module, [50] * 30, 3)
    assert {row.finish for row in first + later} == {"length"}


def test_forks_continue_one_state_without_computing_it_again(module):
    shapes = []
    session = Session(module, WARM, end_ids=set(), texts=[[20, 30, 40]])
    handle = module.model.embed_tokens.register_forward_hook(lambda _m, inputs, _o: shapes.append(inputs[0].shape))
    try:
        parent = session.open([20, 30, 40], [1])[0]
        session.step(6)
        same, other = session.fork(parent, [1, 7])
        assert same.ids == other.ids == parent.ids and len(parent.ids) == 6
        session.step(99)
    finally:
        handle.remove()
    assert shapes == [(1, 3)] + [(1, 1)] * 6 + [(3, 1)] * 13
    assert same.ids == parent.ids == alone(module, [20, 30, 40], 1)
    assert same.logprobs == pytest.approx(parent.logprobs, abs=1e-5)
    assert other.ids[:6] == parent.ids[:6] and other.ids != parent.ids


def test_groups_of_any_size_store_their_prompts_once_and_equal_rows_alone(module):
    session = Session(module, WARM, end_ids=END)
    prompts, sizes = [[20, 30, 40], [50] * 9, [60, 61]], [5, 1, 3]
    rows = [session.open(prompt, range(size)) for prompt, size in zip(prompts, sizes, strict=True)]
    assert isinstance(session.cache, Slots) and session.cache.prefixes
    assert [state.length for state in session.cache.prefixes.states] == [3, 9, 2]
    session.step()
    late = session.open(prompts[1], [7, 8])
    assert session.cache.prefixes.group > 2 and session.cache.prefixes.query_index is not None
    while session.rows:
        running = {(*row.tokens[: row.start], row in late) for row in session.rows}  # a prompt read twice is held twice
        assert len(session.cache.prefixes.states) == len(running)
        session.step()
    for prompt, row in [(p, row) for p, group in zip(prompts, rows, strict=True) for row in group]:
        assert row.ids == alone(module, prompt, row.seed, end=END)
        with torch.no_grad():
            logits = module(torch.tensor([row.tokens])).logits[0, row.start - 1 : -1].log_softmax(-1)
        assert row.logprobs == pytest.approx(logits.gather(-1, torch.tensor(row.ids)[:, None])[:, 0].tolist(), abs=1e-4)
    assert [row.ids for row in late] == [alone(module, prompts[1], seed, end=END) for seed in (7, 8)]


def test_a_model_is_checked_once_for_a_length_until_it_is_made_of_something_else(module):
    calls = []
    embed = module.model.embed_tokens

    def calls_of(length):
        calls.clear()
        session = Session(module, WARM, end_ids=set(), texts=[[20] * length, [30]])
        assert isinstance(session.cache, Slots) and session.cache.decoder
        return len(calls)

    CHECKED.clear()
    mlp = module.model.layers[0].mlp
    before = mlp.act_fn
    forward, embed.forward = embed.forward, lambda ids: calls.append(1) or forward(ids)
    try:
        assert calls_of(50) and not calls_of(50) and not calls_of(3) and calls_of(51)
        mlp.act_fn = torch.nn.GELU()
        assert calls_of(3) and not calls_of(3)
    finally:
        mlp.act_fn = before
        del embed.forward


@pytest.mark.parametrize("steps", [4, 99])
def test_an_extended_row_equals_a_row_with_that_prompt(module, steps):
    session = Session(module, WARM, end_ids=set())
    beside = session.open([90, 91], [5])[0]
    row = session.open([20, 30, 40], [1])[0]
    session.step(steps)
    before = row.ids
    session.extend(row, [77, 78, 79])
    assert row.finish is None and row.ids == [*before, 77, 78, 79]
    session.step(99)
    other = Session(module, WARM, end_ids=set())
    again = other.open([20, 30, 40], [1], forced=[*before, 77, 78, 79])[0]
    other.step(99)
    assert row.ids == again.ids and len(row.ids) == len(before) + 3 + 20
    assert row.logprobs[len(before) : len(before) + 3] == [0.0] * 3
    assert row.logprobs[len(before) :] == pytest.approx(again.logprobs[len(before) :], abs=1e-5)
    assert beside.ids == alone(module, [90, 91], 5)


def test_a_closed_row_is_gone_and_the_others_stay(module):
    session = Session(module, WARM, end_ids=set())
    rows = session.open([20, 30, 40], [1, 2, 3])
    session.step(2)
    session.close(rows[0])
    assert session.step(99) and rows[0].finish is None and len(rows[0].ids) == 2
    assert [row.ids for row in rows[1:]] == [alone(module, [20, 30, 40], seed) for seed in (2, 3)]
    session.close(rows[1])
    for row in rows[:2]:
        with pytest.raises(ModelError, match="does not run"):
            session.fork(row, [1])
        with pytest.raises(ModelError, match="does not run"):
            session.extend(row, [5])
    session.extend(rows[2], [5])
    with pytest.raises(DataError, match="fills the model's context of 256"):
        session.extend(rows[2], [5] * 300)


def test_training_can_go_on_between_two_steps(module):
    module.train()
    try:
        session = Session(module, WARM, end_ids=set())
        row = session.open([20, 30, 40], [1])[0]
        for _ in range(20):
            session.step()
            assert module.training and not torch.is_inference_mode_enabled()
            module(torch.tensor([[20, 30]])).logits.sum().backward()
        assert row.finish == "length"
    finally:
        module.zero_grad(set_to_none=True)
        module.eval()
    assert row.ids == alone(module, [20, 30, 40], 1)


@pytest.fixture(scope="module")
def convolving():
    """A model whose layers do not keep one state per position."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention", "conv"],
        initializer_range=0.3,
    )
    return Lfm2ForCausalLM(config).eval()


def test_rows_of_recurrent_layers_start_together(convolving):
    prompts = [[20, 30, 40], [50] * 9, [20, 30, 40], [60]]
    trajectories = generate(convolving, prompts, end_ids=END, max_new_tokens=20, temperature=1.0, batch=3)
    assert [t.ids for t in trajectories] == [alone(convolving, p, seed, end=END) for seed, p in enumerate(prompts)]
    for prompt in prompts:
        greedy = generate(convolving, [prompt], end_ids=set(), max_new_tokens=9)[0].ids
        with torch.no_grad():
            logits = convolving(torch.tensor([prompt + greedy])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == greedy
    session = Session(convolving, WARM, end_ids=set())
    row, _ = session.open(prompts[0], [0, 1])
    with pytest.raises(ModelError, match="cannot join"):
        session.open(prompts[1], [0])
    with pytest.raises(ModelError, match="cannot be extended"):
        session.extend(row, [5])
    session.step(99)
    assert row.ids == alone(convolving, prompts[0], 0)
