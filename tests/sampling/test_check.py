"""Every model reads texts in a way that gives its own logits: those of one text alone, without cache or mask."""

import random

import numpy
import pytest
import torch

from luthier.errors import ModelError
from luthier.sampling.check import refuse_unreadable
from luthier.sampling.native import NativeSampler
from luthier.sampling.scoring import choice_logprobs, sequence_logprobs
from luthier.sampling.session import Session
from luthier.types import Request, Row, Sampling, Stream
from support.heated import family

FAMILIES = (
    "bart",  # counts positions by columns of the cache
    "whisper",
    "roformer",
    "camembert",  # counts positions from its padding id on, leaving padding out
    "jamba",  # forgets its state where several tokens follow at once
    "recurrent_gemma",  # keeps its state in its modules
    "minimax",  # has a cache of its own kind
    "mamba",  # takes no key-value cache
    "rwkv",
    "openai-gpt",
    "phi3",  # other angles for all positions of a text that is long
    "doge",  # keeps so many positions of a text
    "mistral",  # a window of positions
    "glm",  # rotates a part of each head
    "glm4_moe",
    "nemotron",
    "nanochat",  # norms without weights
    "ernie4_5",
)


def prompts_of(seed=1, shared=4):
    draws = random.Random(seed)
    head = [draws.randrange(3, 96) for _ in range(shared)]
    return [head + [draws.randrange(3, 96) for _ in range(count)] for count in (2, 17, 6, 6, 28, 1)]


def plain(module, ids):
    """Log-probabilities [T,V] of one text alone; virtual tokens of an adapter come first and are left out."""
    with torch.no_grad():
        return module(input_ids=torch.tensor([ids])).logits[0, -len(ids) :].float().log_softmax(-1)


def errors_of(module, temperature=1.0, new=12):
    """The largest errors of the log-probabilities of samples and of choices."""
    prompts, draws = prompts_of(), random.Random(0)
    requests = [Request(prompt, str(index), seed=index) for index, prompt in enumerate(prompts)]
    sampled = []
    for answer in NativeSampler(module, {2})([*requests, *requests[:2]], Sampling(new, temperature)):
        prompt = answer.request.prompt_ids
        for step in range(0, len(answer.ids), 3):
            logprobs = plain(module, [*prompt, *answer.ids[:step]])[-1]
            sampled.append(abs(float(logprobs[answer.ids[step]]) - answer.logprobs[step]))
    choices = [[[draws.randrange(3, 96) for _ in range(size)] for size in (1, 3, 6)] for _ in prompts]
    scored = []
    for prompt, options, scores in zip(prompts, choices, choice_logprobs(module, prompts, choices), strict=True):
        for option, score in zip(options, scores, strict=True):
            logprobs = plain(module, prompt + option)[len(prompt) - 1 : -1]
            scored.append(abs(float(logprobs.gather(1, torch.tensor(option)[:, None]).sum()) - score))
    return max(sampled), max(scored)


@pytest.mark.filterwarnings("ignore:.*read again")
@pytest.mark.parametrize("name", FAMILIES)
def test_samples_and_choices_have_the_log_probabilities_of_the_text_alone(name):
    sampled, scored = errors_of(family(name))
    assert sampled < 1e-4 and scored < 5e-4


@pytest.mark.parametrize("name", ["olmo", "ernie4_5", "glm4_moe", "mixtral"])
def test_in_bfloat16_they_differ_by_rounding_alone(name):
    module = family(name, torch.bfloat16)
    sampled, scored = errors_of(module)
    assert sampled < 0.3 and scored < 0.6
    assert not any(buffer.dtype == torch.float32 for key, buffer in module.named_buffers() if "inv_freq" not in key)


def decoder_of(module, texts, new=12):
    return getattr(Session(module, Sampling(new), end_ids=set(), texts=texts).cache, "decoder", None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_own_decoder_is_left_where_attention_clips_what_these_texts_do_not_reach(dtype):
    assert decoder_of(family("olmo", dtype), prompts_of()) is not None
    module = family("olmo", dtype, clip_qkv=30.0)
    largest = []
    handles = []
    for layer in module.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            handles.append(projection.register_forward_hook(lambda _m, _i, states: largest.append(states.abs().max())))
    plain(module, prompts_of()[4])
    for handle in handles:
        handle.remove()
    assert max(largest) < 30.0  # nothing is clipped in these texts
    assert decoder_of(module, prompts_of()) is None


def test_rotary_angles_are_computed_as_far_as_rows_reach():
    module = family("llama", max_position_embeddings=1 << 20)
    session = Session(module, Sampling(300), end_ids=set())
    row = session.open(prompts_of()[1], [0])[0]
    session.step(300)
    assert len(row.ids) == 300 and len(session.cache.decoder.cosine) <= 1024


@pytest.mark.filterwarnings("ignore:.*read again")
def test_a_longer_text_changes_the_way_of_a_session_and_no_row_notices():
    module = family("phi3")
    prompts = prompts_of()
    session = Session(module, Sampling(8, 1.0), end_ids=set())
    short = session.open(prompts[0], [1])[0]
    session.step(3)
    finished = session.open(prompts[5], [3])[0]
    session.close(short) if short.finish else None
    later = session.open(prompts[4], [2])[0]  # beyond the length at which the angles change
    session.step(8)
    session.extend(finished, [5, 6])
    session.step(8)
    assert session.forward.way.cached is False
    for row in (short, finished, later):
        drawn = [index for index, logprob in enumerate(row.logprobs) if logprob]
        for index in drawn:
            logprobs = plain(module, row.tokens[: row.start + index])[-1]
            assert row.logprobs[index] == pytest.approx(float(logprobs[row.ids[index]]), abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*read again")
@pytest.mark.parametrize("name", ["bart", "openai-gpt"])
def test_rows_of_any_model_are_forked_extended_and_join_others(name):
    module, prompts = family(name), prompts_of()
    session = Session(module, Sampling(9, 1.0), end_ids=set(), texts=prompts)
    row = session.open(prompts[1], [1])[0]
    session.step(4)
    fork = session.fork(row, [7])[0]
    late = session.open(prompts[3], [2])[0]
    session.step(2)
    session.extend(late, [9, 8, 7])
    session.close(row)
    session.step(20)
    assert [len(other.ids) for other in (row, fork, late)] == [6, 9, 14]
    for other in (row, fork, late):
        logprobs = plain(module, other.tokens)[other.start - 1 : -1].gather(1, torch.tensor(other.ids)[:, None])[:, 0]
        for expected, logprob in zip(logprobs.tolist(), other.logprobs, strict=True):
            assert logprob in (0.0, pytest.approx(expected, abs=1e-4))


@pytest.mark.parametrize("name", ["phi3", "camembert", "recurrent_gemma", "bart", "llama"])
def test_rows_score_as_each_alone_by_the_plain_forward(name):
    module, rows = family(name), []
    for index, prompt in enumerate(prompts_of()):
        weights = numpy.ones(len(prompt), dtype="float32")
        weights[0] = 0
        rows.append(Row(f"r{index}", numpy.array(prompt, dtype="int32"), {"weights": Stream(weights, "token")}))
    for row, (total, _) in zip(rows, sequence_logprobs(module, rows), strict=True):
        ids = row.ids.tolist()
        expected = plain(module, ids)[:-1].gather(1, torch.tensor(ids[1:])[:, None]).sum()
        assert total == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.filterwarnings("ignore:.*read again")
@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_adapters_of_virtual_tokens_are_read_again(kind):
    import peft

    config = getattr(peft, kind)(num_virtual_tokens=3, task_type="CAUSAL_LM")
    module = peft.get_peft_model(family("llama"), config).eval()
    sampled, scored = errors_of(module)
    assert sampled < 1e-4 and scored < 5e-4


def test_the_context_is_the_one_that_a_run_respects():
    # Its config names the bound `max_seq_len`, and its biases have no row beyond it.
    module = family("mpt", n_heads=4, n_layers=2, max_seq_len=24)
    requests = [Request([*range(3, 23)], "long"), Request([*range(3, 8)], "short")]
    trajectories = NativeSampler(module, set(), batch=2)(requests, Sampling(12, 0.0))
    assert [len(trajectory.ids) for trajectory in trajectories] == [4, 12]


def test_a_model_that_sees_what_follows_is_refused():
    module = family("roformer", is_decoder=False)
    with pytest.raises(ModelError, match="RoFormerForCausalLM cannot generate: it reads the tokens behind"):
        errors_of(module)


def test_a_model_that_cannot_read_a_text_is_refused_in_a_sentence():
    module = family("llama")
    refuse_unreadable(module, [5, 6, 7])
    with pytest.raises(ModelError, match=r"LlamaForCausalLM cannot generate: reading .*IndexError"):
        refuse_unreadable(module, [5, 6, 5000])
