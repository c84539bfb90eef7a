"""Adapters folded in while a model answers: the same answers, the same bits afterwards, and what is left alone."""

import copy

import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.models.kernels.folding import folded_in
from luthier.sampling.native import generate
from luthier.sampling.scoring import choice_logprobs

IDS = torch.arange(12).view(2, 6)


def plain(dtype=torch.float64, tied=False):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.3,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def adapted(model=None, **more):
    torch.manual_seed(1)
    options = {"target_modules": "all-linear", "r": 4, "init_lora_weights": False, **more}
    return get_peft_model(model or plain(), LoraConfig(**options)).eval()


def products(module):
    """How many products of adapters a forward makes."""
    calls = []
    for name, piece in module.named_modules():
        if ".lora_A." in name:
            piece.register_forward_hook(lambda *_: calls.append(1))
    module(input_ids=IDS)
    return len(calls)


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_dropout": 0.5}])
def test_the_answers_are_those_of_the_adapter(more):
    module = adapted(**more)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        expected = module(input_ids=IDS).logits
        bare = plain()(input_ids=IDS).logits
        with folded_in(module):
            actual = module(input_ids=IDS).logits
            assert products(module) == 0
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(expected, bare, atol=0.1)
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(module(input_ids=IDS).logits, expected) and products(module) > 0


def test_training_goes_on_as_if_nothing_had_been():
    def gradients(read_between):
        module = adapted()
        if read_between:
            with folded_in(module):
                module(input_ids=IDS)
        module(input_ids=IDS, labels=IDS).loss.backward()
        return [p.grad for p in module.parameters() if p.requires_grad]

    folded, unfolded = gradients(True), gradients(False)
    assert folded and all(torch.equal(a, b) for a, b in zip(folded, unfolded, strict=True))


def test_the_bits_return_when_something_fails_inside():
    module = adapted()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match="inside"), folded_in(module):
        raise ValueError("inside")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert products(module) > 0


def test_within_another_scope_it_is_folded_once():
    module = adapted()
    expected = module(input_ids=IDS).logits
    with folded_in(module):
        with folded_in(module):
            torch.testing.assert_close(module(input_ids=IDS).logits, expected, rtol=1e-9, atol=1e-9)
        assert products(module) == 0
    assert products(module) > 0


def test_what_is_switched_off_stays_off():
    module = adapted()
    with torch.no_grad(), module.disable_adapter():
        expected = module(input_ids=IDS).logits
        with folded_in(module):
            assert torch.equal(module(input_ids=IDS).logits, expected)


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize("why", ["16 bits", "memory", "bias", "no adapter"])
def test_left_alone(why, monkeypatch):
    module = {
        "16 bits": lambda: adapted(plain(torch.bfloat16)),
        "memory": adapted,
        "bias": lambda: adapted(lora_bias=True),
        "no adapter": plain,
    }[why]()
    if why == "memory":
        monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    weights = [p.data_ptr() for p in module.parameters()]
    count = products(module)
    with folded_in(module):
        assert products(module) == count
        assert [p.data_ptr() for p in module.parameters()] == weights


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_a_weight_that_the_embedding_shares_is_not_touched():
    module = adapted(plain(tied=True), target_modules=["q_proj", "lm_head"])
    with torch.no_grad():
        expected = module(input_ids=IDS).logits
        with folded_in(module):
            torch.testing.assert_close(module(input_ids=IDS).logits, expected, rtol=1e-9, atol=1e-9)


def test_sampler_and_scores_fold():
    module = adapted()
    calls = []
    for name, piece in module.named_modules():
        if ".lora_A." in name:
            piece.register_forward_hook(lambda *_: calls.append(1))
    prompts = IDS.tolist()
    answers = generate(module, prompts, end_ids=set(), max_new_tokens=5)
    scores = choice_logprobs(module, prompts, [[[3], [4, 5]]] * 2)
    assert calls == []
    with torch.no_grad():
        for prompt, answer, score in zip(prompts, answers, scores, strict=True):
            ids = list(prompt)
            for token in answer.ids:
                assert int(module(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
                ids.append(token)
            logprobs = module(input_ids=torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1)
            assert abs(float(logprobs[3]) - score[0]) < 1e-5
