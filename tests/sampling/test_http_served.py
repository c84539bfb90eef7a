"""The HTTP sampler against `transformers serve` with nano; needs `pip install transformers[serving]`."""

import json
import shutil

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.import_utils import is_serve_available

from luthier.data.render import Renderer
from luthier.errors import RunError
from luthier.models.loading.bundled import bundled_path
from luthier.sampling.http import HttpSampler
from luthier.sampling.native import NativeSampler
from luthier.sampling.text import answer_text
from luthier.types import Record, Request, Sampling
from support.served import answering, free_port, started

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_serve_available(), reason="needs `pip install transformers[serving]`"),
]
QUESTIONS = [f"reverse {word}" for word in ("abc", "fgk", "lmnop", "xy")] + ["What is 12 + 30?", "copy: qrst"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with answering(tmp_path_factory.mktemp("server") / "log") as url:
        yield url


class Served:
    """A model's folder, what samples it here, and what asks for it there."""

    def __init__(self, folder, url):
        self.folder, self.url = str(folder), url
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.renderer = Renderer(self.tokenizer)
        self.module = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()

    def here(self, requests, sampling):
        return NativeSampler(self.module, self.renderer.end_ids, self.tokenizer)(requests, sampling)

    def sampler(self, **more):
        return HttpSampler(self.url, self.folder, self.tokenizer, end=self.tokenizer.eos_token_id, wait=0.1, **more)

    def requests(self, questions=QUESTIONS):
        fields = [{"prompt": text, "completion": "-"} for text in questions]
        records = [
            Record(text, "prompt_completion", content, text) for text, content in zip(questions, fields, strict=True)
        ]
        return [
            Request(
                self.renderer.prompt(record), record.id, metadata={"messages": [{"role": "user", "content": record.id}]}
            )
            for record in records
        ]

    def text(self, trajectory, stop=()):
        return answer_text(trajectory.ids, self.renderer.end_ids, self.tokenizer.decode, stop)


@pytest.fixture(scope="module")
def nano(server):
    return Served(bundled_path("nano"), server)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_greedy_answers_are_the_native_samplers_in_their_order(nano, endpoint):
    requests, sampling, progress = nano.requests(), Sampling(48), []
    here = nano.here(requests, sampling)
    there = nano.sampler(endpoint=endpoint, concurrency=3)(requests, sampling, progress.append)
    assert progress == [*range(1, len(requests) + 1)] and [trajectory.record for trajectory in there] == QUESTIONS
    assert [trajectory.ids for trajectory in there] == [trajectory.ids for trajectory in here]
    assert [trajectory.finish for trajectory in there] == [trajectory.finish for trajectory in here]
    assert len({tuple(trajectory.ids) for trajectory in there}) > 3 and "stop" in {
        trajectory.finish for trajectory in there
    }


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_stop_strings_and_the_most_tokens_end_an_answer(nano, endpoint):
    requests, sampler = nano.requests(), nano.sampler(endpoint=endpoint)
    full = [nano.text(trajectory) for trajectory in nano.here(requests, Sampling(48))]
    stop = (full[0][2],)
    stopped = sampler(requests, Sampling(48, stop=stop))
    assert [nano.text(trajectory) for trajectory in stopped] == [text.split(stop[0])[0] for text in full]
    assert nano.text(stopped[0]) != full[0] and stopped[0].finish == "stop"
    short = sampler(requests, Sampling(2))
    assert [trajectory.finish for trajectory in short] == ["length"] * len(requests)
    assert [trajectory.ids for trajectory in short] == [
        trajectory.ids for trajectory in nano.here(requests, Sampling(2))
    ]


def test_forced_tokens_are_continued(nano):
    forced = nano.tokenizer("#### ", add_special_tokens=False)["input_ids"]
    requests = [Request(request.prompt_ids, request.record, forced_ids=forced) for request in nano.requests()]
    here, there = nano.here(requests, Sampling(16)), nano.sampler()(requests, Sampling(16))
    assert [trajectory.ids for trajectory in here] == [trajectory.ids for trajectory in there]
    assert all(trajectory.ids[: len(forced)] == forced for trajectory in there)


def test_a_refused_request_is_an_error_with_the_servers_reason(nano):
    requests = nano.requests()[:2]
    refused = nano.sampler()(requests, Sampling(4, 1.0, min_p=0.1))
    assert [trajectory.finish for trajectory in refused] == ["error", "error"]
    assert "422" in refused[0].request.metadata["error"] and "min_p" in refused[0].request.metadata["error"]
    assert refused[0].request.metadata["refused"]
    broken = nano.sampler(retries=1)([Request([], "empty"), requests[0]], Sampling(4))  # answers 500 to no prompt
    assert [trajectory.finish for trajectory in broken] == ["error", "length"]
    assert "500" in broken[0].request.metadata["error"] and not broken[0].request.metadata["refused"]


def test_requests_wait_for_a_server_that_is_still_starting(nano, tmp_path):
    requests = nano.requests()[:2]
    with started(tmp_path / "log") as url:
        late = Served(nano.folder, url)
        with pytest.raises(RunError, match="No server answers"):
            late.sampler().reach()
        sampler = late.sampler(retries=9)  # 0.1 + 0.2 + ... + 25.6 seconds
        there = sampler(requests, Sampling(24))
    assert [trajectory.ids for trajectory in there] == [
        trajectory.ids for trajectory in nano.here(requests, Sampling(24))
    ]


def test_replies_are_read_from_the_journal_when_the_server_is_gone(nano, tmp_path):
    requests, journal = nano.requests(), tmp_path / "replies.jsonl"
    half = nano.sampler(journal=journal)(requests[:3], Sampling(24))
    gone = Served(nano.folder, f"http://127.0.0.1:{free_port()}/v1")
    again = gone.sampler(journal=journal, retries=0)(requests, Sampling(24))
    assert [trajectory.finish == "error" for trajectory in again] == [False] * 3 + [True] * 3
    whole = nano.sampler(journal=journal)(requests, Sampling(24))
    assert (
        [trajectory.ids for trajectory in whole[:3]]
        == [trajectory.ids for trajectory in half]
        == [trajectory.ids for trajectory in again[:3]]
    )
    assert len(journal.read_text().splitlines()) == len(requests)


def changed(folder, **files):
    shutil.copytree(bundled_path("nano"), folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name, change in files.items():
        path = folder / f"{name}.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    return folder


def test_a_token_that_tokenizers_add_is_read_once(server, tmp_path):
    def opened(tokenizer):
        opening = {"id": "<|user|>", "ids": [user], "tokens": ["<|user|>"]}
        single = [{"SpecialToken": {"id": "<|user|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|user|>": opening},
        }

    user = AutoTokenizer.from_pretrained(bundled_path("nano")).convert_tokens_to_ids("<|user|>")
    model = Served(changed(tmp_path / "opened", tokenizer=opened), server)
    request = model.requests()[0]
    assert request.prompt_ids[0] == user and model.tokenizer("a")["input_ids"][0] == user
    sampler = model.sampler()
    assert sampler._send(sampler._body(request, Sampling(8)))["usage"]["prompt_tokens"] == len(request.prompt_ids)
    assert sampler([request], Sampling(24))[0].ids == model.here([request], Sampling(24))[0].ids


def test_a_temperature_counts_where_the_model_is_one_that_samples(nano, server, tmp_path):
    """`transformers serve` samples only if the model's generation config says `do_sample`."""
    drawing = Served(
        changed(tmp_path / "drawing", generation_config=lambda config: config.update(do_sample=True)), server
    )
    question = nano.requests()[:1] * 4
    requests = [Request(request.prompt_ids, request.record, seed=seed) for seed, request in enumerate(question)]

    def answers(model, **more):
        return [
            tuple(trajectory.ids) for trajectory in model.sampler(concurrency=1, **more)(requests, Sampling(24, 2.0))
        ]

    greedy = nano.here(requests, Sampling(24))
    assert answers(nano) == [tuple(trajectory.ids) for trajectory in greedy]
    drawn = answers(drawing)
    assert len(set(drawn)) > 1 and drawn == answers(drawing)  # one at a time, seeds are kept
    asked = json.dumps({"do_sample": True, "eos_token_id": nano.tokenizer.eos_token_id})
    assert len(set(answers(nano, extra={"generation_config": asked}))) > 1
