"""Generation equals transformers' token for token, and no row depends on the others."""

import random

import pytest
import torch

from luthier.errors import DataError, ModelError
from luthier.sampling.check import CHECKED
from luthier.sampling.draws import uniforms
from luthier.sampling.native import generate

END = set(range(2, 14))  # with 128 random tokens, rows end at very different lengths


def ragged_prompts(count, seed=0):
    draw = random.Random(seed)
    return [[draw.randrange(14, 128) for _ in range(draw.randrange(1, 40))] for _ in range(count)]


def by_transformers(module, prompt, new):
    generated = module.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=new,
        eos_token_id=sorted(END),
        pad_token_id=0,
    )
    return generated[0, len(prompt) :].tolist()


def test_a_common_prefix_is_run_once(module):
    head = ragged_prompts(1)[0] * 3
    prompts = [head + tail for tail in ragged_prompts(8, seed=4)] + [head]
    shapes = []
    handle = module.model.embed_tokens.register_forward_hook(lambda _m, inputs, _o: shapes.append(inputs[0].shape))
    try:
        generate(module, prompts, end_ids=END, max_new_tokens=12)  # the model is checked here, and not below
        shapes.clear()
        trajectories = generate(module, prompts, end_ids=END, max_new_tokens=12)
    finally:
        handle.remove()
    assert [t.ids for t in trajectories] == [by_transformers(module, prompt, 12) for prompt in prompts]
    assert shapes[0] == (1, len(head) - 1) and shapes[1][0] == 9 and shapes[1][1] <= 41


@pytest.fixture(scope="module")
def wanted(module):
    return [by_transformers(module, prompt, 60) for prompt in ragged_prompts(20)]


@pytest.mark.parametrize("batch", [1, 5, None])
def test_greedy_equals_transformers(module, wanted, batch):
    trajectories = generate(module, ragged_prompts(20), end_ids=END, max_new_tokens=60, batch=batch)
    assert [trajectory.ids for trajectory in trajectories] == wanted
    assert len({len(ids) for ids in wanted}) > 5
    assert {trajectory.finish for trajectory in trajectories} == {"stop", "length"}
    for trajectory in trajectories:
        assert (trajectory.ids[-1] in END) == (trajectory.finish == "stop")


def test_draws_do_not_depend_on_the_batch(module):
    prompts, seeds = ragged_prompts(12), list(range(100, 112))
    kwargs = {"end_ids": END, "max_new_tokens": 30, "temperature": 1.0}
    together = generate(module, prompts, seeds=seeds, batch=12, **kwargs)
    alone = generate(module, prompts, seeds=seeds, batch=1, **kwargs)
    backwards = generate(module, prompts[::-1], seeds=seeds[::-1], batch=5, **kwargs)
    assert [t.ids for t in together] == [t.ids for t in alone] == [t.ids for t in backwards[::-1]]
    other = generate(module, prompts, seeds=[seed + 1 for seed in seeds], batch=12, **kwargs)
    assert [t.ids for t in other] != [t.ids for t in together]


def test_draws_follow_the_distribution(module):
    prompt, count = [20, 30, 40], 3000
    trajectories = generate(
        module, [prompt] * count, end_ids=set(), max_new_tokens=1, temperature=2.0, seeds=list(range(count)), batch=500
    )
    with torch.no_grad():
        wanted = (module(torch.tensor([prompt])).logits[0, -1].double() / 2.0).softmax(-1)
    frequencies = torch.bincount(torch.tensor([t.ids[0] for t in trajectories]), minlength=128) / count
    assert (frequencies - wanted).abs().max() < 4 * (wanted * (1 - wanted) / count).sqrt().max()


def test_uniform_is_spread():
    values = [value for seed in range(100) for value in uniforms([seed] * 100, range(100)).tolist()]
    assert len(set(values)) == len(values)
    assert abs(sum(values) / len(values) - 0.5) < 0.01
    assert min(values) >= 0 and max(values) < 1


def test_mode_returns_and_no_gradient_state_remains(module):
    module.train()
    module.model.layers[0].eval()
    try:
        generate(module, [[20, 30]], end_ids=set(), max_new_tokens=2)
        assert module.training and module.model.layers[1].training and not module.model.layers[0].training
        module(torch.tensor([[20, 30]])).logits.sum().backward()
    finally:
        module.zero_grad(set_to_none=True)
        module.eval()


def test_progress_and_record_names(module):
    progress = []
    trajectories = generate(
        module,
        ragged_prompts(7),
        end_ids=END,
        max_new_tokens=9,
        batch=3,
        progress=progress.append,
        records=list("abcdefg"),
    )
    assert progress == [1, 2, 3, 4, 5, 6, 7]
    assert [t.record for t in trajectories] == list("abcdefg")


def test_the_context_is_a_limit(module):
    trajectories = generate(module, [[20] * 250, [30] * 3], end_ids=set(), max_new_tokens=20)
    assert [len(t.ids) for t in trajectories] == [6, 20]
    for prompt in ([], [20] * 256):
        with pytest.raises(DataError, match="Record broken"):
            generate(module, [prompt], end_ids=set(), max_new_tokens=2, records=["broken"])


def test_a_module_that_is_no_language_model_is_refused(module, monkeypatch):
    with pytest.raises(ModelError, match="Linear is no causal language model"):
        generate(torch.nn.Linear(2, 2), [[1]], end_ids=set(), max_new_tokens=1)
    CHECKED.clear()
    monkeypatch.setattr(module.model, "forward", lambda **inputs: 1 / 0)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM cannot generate: .*ZeroDivisionError"):
        generate(module, [[1] * 200], end_ids=set(), max_new_tokens=9)


def test_a_sliding_window_model_equals_transformers():
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(1)
    config = MistralConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        initializer_range=0.3,
    )
    model = MistralForCausalLM(config).eval()
    prompts = ragged_prompts(9, seed=3)
    trajectories = generate(model, prompts, end_ids=END, max_new_tokens=40)
    assert [t.ids for t in trajectories] == [by_transformers(model, prompt, 40) for prompt in prompts]
