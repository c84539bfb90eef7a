"""Requests, groups, forced tokens, filters, stop strings, and log-probabilities that are the trainer's own."""

import itertools

import numpy
import pytest
import torch
import transformers

from luthier.conformance.tiny import tiny_model
from luthier.data.batches import collate
from luthier.errors import ModelError
from luthier.models.kernels.head import target_logprob
from luthier.models.policy import TokenPolicy
from luthier.sampling.draws import draw
from luthier.sampling.native import NativeSampler
from luthier.sampling.session import Session
from luthier.sampling.stops import StopWatch, cut
from luthier.types import Request, Row, Sampling, Stream

END = set(range(2, 14))


def groups(count=6, size=8):
    draws = numpy.random.default_rng(0)
    prompts = [draws.integers(14, 128, draws.integers(3, 40)).tolist() for _ in range(count)]
    return [Request(p, f"r{i}", group=f"g{i}", seed=100 * i + k) for i, p in enumerate(prompts) for k in range(size)]


def by_trainer(module, trajectory, temperature):
    """Log-probabilities of sampled ids as training computes them: the policy's hidden states and its head."""
    ids = [*trajectory.request.prompt_ids, *trajectory.ids]
    start = len(trajectory.request.prompt_ids)
    weights = numpy.array([0.0] * start + [1.0] * len(trajectory.ids), dtype="float32")
    batch = collate([Row("r", numpy.array(ids, dtype="int32"), {"weights": Stream(weights, "token")})])
    policy = TokenPolicy(module, temperature)
    with torch.no_grad():
        hidden = policy.hidden(batch)
        return target_logprob(policy.head.logits(hidden), torch.tensor(trajectory.ids)).tolist()


@pytest.mark.parametrize("wrapped", [False, True])
def test_logprobs_are_those_of_the_trainer(wrapped):
    module = tiny_model().float()
    if wrapped:
        from peft import LoraConfig, get_peft_model

        module = get_peft_model(module, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    module.train()
    vocabulary = module.get_output_embeddings().weight.shape[0]
    requests = [Request([1 + k for k in range(3 + i)], f"r{i}", seed=i) for i in range(9)]
    sampler = NativeSampler(module, {vocabulary - 1, vocabulary - 2}, batch=4)
    trajectories = sampler(requests, Sampling(max_new_tokens=25, temperature=0.7, top_p=0.9))
    assert module.training and all(piece.training for piece in module.modules())
    module.eval()
    for trajectory in trajectories:
        assert trajectory.logprobs == pytest.approx(by_trainer(module, trajectory, 0.7), abs=1e-4)
        assert min(trajectory.logprobs) < -1


def test_a_group_reads_its_prompt_once_and_rows_enter_as_others_leave(module):
    shapes = []
    sampling = Sampling(max_new_tokens=40, temperature=1.0)
    handle = module.model.embed_tokens.register_forward_hook(lambda _m, inputs, _o: shapes.append(inputs[0].shape))
    requests = groups()
    try:
        NativeSampler(module, END)(requests, sampling)  # the model is checked here, and not below
        shapes.clear()
        few = NativeSampler(module, END, batch=12)(requests, sampling)
    finally:
        handle.remove()
    read = sum(rows * width for rows, width in shapes if width > 1)
    distinct = {tuple(request.prompt_ids): len(request.prompt_ids) for request in requests}
    assert sum(distinct.values()) <= read < 2 * sum(distinct.values())  # each once, but for padding
    steps = [rows for rows, width in shapes if width == 1]
    assert max(steps) <= 12 and sum(steps) == sum(len(t.ids) - 1 for t in few)  # no step of a finished row
    assert any(later > sooner for sooner, later in itertools.pairwise(steps))
    alone = [NativeSampler(module, END)([request], sampling)[0] for request in requests]
    assert [t.ids for t in few] == [t.ids for t in alone]
    assert [t.request for t in few] == requests and [t.record for t in few] == [r.record for r in requests]
    for batched, other in zip(few, alone, strict=True):
        assert batched.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_forced_ids_are_given_and_the_rest_follows_as_if_they_had_been_drawn(module):
    sampling = Sampling(max_new_tokens=12, temperature=1.0)
    whole = NativeSampler(module, set())([Request([20, 30, 40], "r", seed=3)], sampling)[0]
    forced = Request([20, 30, 40], "r", forced_ids=whole.ids[:5], seed=3)
    trajectory = NativeSampler(module, set())([forced, Request([20, 30], "s")], sampling)[0]
    assert trajectory.ids[:12] == whole.ids and len(trajectory.ids) == 5 + 12
    assert list(trajectory.logprobs[:5]) == [0.0] * 5
    assert trajectory.logprobs[5:12] == pytest.approx(whole.logprobs[5:], abs=1e-5)


def test_filters_keep_what_their_definitions_keep():
    probabilities = torch.tensor([[0.05, 0.4, 0.3, 0.05, 0.2]])
    grid = (numpy.arange(2000) + 0.5) / 2000

    def shares(**options):
        ids, logprobs = draw(probabilities.log().expand(2000, 5), Sampling(temperature=1.0, **options), grid)
        assert logprobs == pytest.approx(probabilities[0].log()[ids])  # of the whole distribution, not of what is left
        return (torch.bincount(ids, minlength=5) / 2000).tolist()

    assert shares() == pytest.approx([0.05, 0.4, 0.3, 0.05, 0.2], abs=1e-3)
    assert shares(top_p=0.5) == pytest.approx([0, 4 / 7, 3 / 7, 0, 0], abs=1e-3)
    assert shares(top_p=0.71) == pytest.approx([0, 4 / 9, 3 / 9, 0, 2 / 9], abs=1e-3)
    assert shares(top_p=0.01) == [0, 1, 0, 0, 0]
    assert shares(min_p=0.6) == pytest.approx([0, 4 / 7, 3 / 7, 0, 0], abs=1e-3)
    assert shares(min_p=1.0) == [0, 1, 0, 0, 0]
    assert shares(min_p=0.4, top_p=0.5) == pytest.approx([0, 4 / 7, 3 / 7, 0, 0], abs=1e-3)
    ids, logprobs = draw(probabilities.log(), Sampling(temperature=0.0), grid[:1])
    assert ids.tolist() == [1] and logprobs.item() == pytest.approx(numpy.log(0.4))


@pytest.mark.parametrize("top_p", [0.3, 0.8])
@pytest.mark.parametrize("min_p", [0.0, 0.2])
def test_filters_equal_those_of_transformers(top_p, min_p):
    from transformers import MinPLogitsWarper, TopPLogitsWarper

    torch.manual_seed(0)
    logits = 2 * torch.randn(1, 12)
    wanted = TopPLogitsWarper(top_p)(None, logits)
    wanted = MinPLogitsWarper(min_p)(None, wanted) if min_p else wanted
    grid = (numpy.arange(4000) + 0.5) / 4000
    ids, _ = draw(logits.expand(4000, 12), Sampling(temperature=1.0, top_p=top_p, min_p=min_p), grid)
    assert torch.bincount(ids, minlength=12) / 4000 == pytest.approx(wanted.softmax(-1)[0], abs=1e-3)


class Pieces:
    """A tokenizer whose tokens are bytes, so that a character may take several."""

    def decode(self, ids, **options):
        return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize(
    ("text", "stop", "at"),
    [
        ("a cat sat", ("at",), "a cat"),
        ("aab aaab", ("aaab",), "aab aaab"),
        ("no stop", ("stopp",), None),
        ("ein Käse ist", ("ä",), "ein Kä"),
        ("one\n\ntwo", ("\n\n", "w"), "one\n\n"),
        ("x→y→", ("→y→",), "x→y→"),
    ],
)
def test_a_stop_string_is_found_at_its_last_token(text, stop, at):
    tokens = list(b"prompt at ")
    watch = StopWatch(Pieces(), stop, tokens, len(tokens))
    stopped_at = None
    for index, byte in enumerate(text.encode()):
        tokens.append(byte)
        if watch.reached():
            stopped_at = text.encode()[: index + 1].decode()
            break
    assert stopped_at == at


def test_stop_strings_end_a_continuation(module):
    class Letters:
        def decode(self, ids, **options):
            return "".join(f"<{i}>" for i in ids)

    free = Sampling(max_new_tokens=30, temperature=1.0)
    requests = groups(2, 4)
    plain = NativeSampler(module, set())(requests, free)
    chosen = plain[0].ids[10:12]
    stop = f"<{chosen[0]}><{chosen[1]}>"
    stopped = NativeSampler(module, set(), Letters())(requests, Sampling(30, 1.0, stop=(stop,)))
    assert stopped[0].ids == plain[0].ids[:12] and stopped[0].finish == "stop"
    for trajectory, other in zip(stopped[1:], plain[1:], strict=True):
        assert trajectory.ids == other.ids[: len(trajectory.ids)]
        assert (trajectory.finish == "stop") == (stop in Letters().decode(trajectory.ids))
    assert cut("a b stop c", ("stop", "c")) == "a b " and cut("abc", ("x",)) == "abc"
    with pytest.raises(ModelError, match="no tokenizer"):
        NativeSampler(module, set())(requests, Sampling(stop=("x",)))


def decoder(module):
    texts = [[20, 30, 40, 50, 60], [70, 80]]
    return getattr(Session(module, Sampling(30), end_ids=set(), texts=texts).cache, "decoder", None)


def of_family(family, **more):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.3,
        max_position_embeddings=256,
        **more,
    )
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


@pytest.mark.parametrize(
    ("family", "more", "plain"),
    [
        ("Qwen2", {}, True),
        ("Qwen3", {}, True),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}, True),
        ("Mistral", {"sliding_window": 8}, False),  # a window that a short look would not show
        ("Gemma2", {}, False),
        ("Granite", {"residual_multiplier": 0.3}, False),  # the same pieces, put together in another way
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}, False),
    ],
)
def test_families_give_the_logits_of_their_own_forward(family, more, plain):
    module = of_family(family, **more)
    assert (decoder(module) is not None) == plain
    requests = groups(4, 2)
    for trajectory in NativeSampler(module, END, batch=5)(requests, Sampling(20, 1.0)):
        assert trajectory.logprobs == pytest.approx(by_trainer(module, trajectory, 1.0), abs=1e-4)


def test_a_model_with_hooks_or_another_forward_has_no_decoder():
    module = of_family("Llama")
    assert decoder(module) is not None
    handle = module.model.layers[1].register_forward_hook(lambda _m, _i, output: output * 1.0)
    assert decoder(module) is None
    handle.remove()
    module.model.layers[0].self_attn.forward = module.model.layers[0].self_attn.forward
    assert decoder(module) is None
