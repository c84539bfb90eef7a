"""Answers of a model elsewhere: collected, kept, trained on; refused where the model itself must answer."""

import io
import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers.utils.import_utils import is_serve_available

from luthier.errors import DataError, RecipeError, RunError
from luthier.models.loading.bundled import bundled_path
from luthier.models.loading.load import load_tokenizer
from luthier.recipe import load_recipe
from luthier.recipe.settings import Model
from luthier.run_folder import read_jsonl
from luthier.steps.check_page import check_recipe
from luthier.steps.evaluate import evaluate_model
from luthier.steps.run import run_recipe
from support.served import answering, said, serving

WORDS = [f"{a}{b}{c}" for a in "ab" for b in "fg" for c in "kl"]


@pytest.fixture
def data(tmp_path):
    lines = [json.dumps({"prompt": f"reverse {word}", "completion": word[::-1]}) for word in WORDS]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def recipe(folder, **more):
    content = {
        "model": "nano",
        "data": {"train": "data.jsonl", "validation": None, "test": None},
        "train": {"tuner": {"kind": "lora", "r": 2}, "batch": {"records": 4, "order": "written"}},
        "budget": {"records": 8},
        "evaluate": {"metric": "exact", "perplexity": False},
        "generate": {"max_new_tokens": 6},
    }
    return load_recipe({**content, **more}, base=folder)


def learning(folder, url, samples=1, train=None, **sampler):
    asked = {"sampler": {"kind": "http", "url": url, "model": "teacher", "retries": 0, **sampler}}
    steps = {"answers": {"do": "generate", "samples": samples, "generate": asked}}
    return recipe(folder, steps={**steps, "learn": {"do": "train", "data": "answers", **(train or {})}})


def reversing(body, number):
    return said(body["messages"][-1]["content"].removeprefix("reverse ")[::-1])


def test_learning_from_a_teacher_that_is_always_right_is_learning_from_gold(data):
    run_recipe(recipe(data), data / "gold", [])
    with serving(reversing) as (url, asked):
        record = run_recipe(learning(data, url, concurrency=2), data / "run", [])
    assert record["steps"]["answers"]["right"] == len(WORDS) and "refused" not in record["steps"]["answers"]
    assert {one["path"] for one in asked} == {"/v1/chat/completions"}
    assert sorted(one["messages"][-1]["content"] for one in asked) == sorted(f"reverse {word}" for word in WORDS)
    assert {one["max_tokens"] for one in asked} == {6} and {one["model"] for one in asked} == {"teacher"}
    gold, learned = (load_file(next((data / name / "model").glob("*.safetensors"))) for name in ("gold", "run"))
    assert all(torch.equal(gold[name], learned[name]) for name in gold)


def test_the_key_comes_from_the_environment_and_is_written_nowhere(data, monkeypatch):
    with serving(reversing) as (url, asked):
        settings = learning(data, url, api_key_env="TEACHERS_KEY")
        monkeypatch.delenv("TEACHERS_KEY", raising=False)
        with pytest.raises(RunError, match="TEACHERS_KEY, which should hold the key"):
            run_recipe(settings, data / "run", [])
        monkeypatch.setenv("TEACHERS_KEY", "very-secret")
        run_recipe(settings, data / "run", [])
    assert {one["token"] for one in asked} == {"Bearer very-secret"}
    files = [path for path in (data / "run").rglob("*") if path.is_file()]
    assert len(files) > 5 and not [path for path in files if b"very-secret" in path.read_bytes()]
    assert "very-secret" not in json.dumps(settings.to_lock()) and "TEACHERS_KEY" in json.dumps(settings.to_lock())


def test_a_server_that_is_not_there_is_said_before_anything_starts(data):
    with serving(reversing) as (url, _):
        pass
    with pytest.raises(RunError, match=f"No server answers at {url}") as error:
        run_recipe(learning(data, url), data / "run", [])
    assert "transformers serve teacher" in error.value.hint
    assert not (data / "run" / "steps").exists()


def test_check_says_whether_the_server_is_there(data):
    shown = io.StringIO()
    with serving(reversing) as (url, _):
        check_recipe(learning(data, url), False, Console(file=shown, width=200))
    check_recipe(learning(data, url), False, Console(file=shown, width=200))
    assert f"answers: {url} answers" in shown.getvalue() and "vllm serve teacher" in shown.getvalue()
    assert f"answers: not yet: No server answers at {url}" in shown.getvalue()


def test_a_server_that_goes_away_is_asked_only_for_the_rest(data):
    def leaving(body, number):
        return (503, b"full") if number > 5 else reversing(body, number)

    with serving(leaving) as (url, asked):
        with pytest.raises(RunError, match="3 of 8 answers are missing: 503 Service Unavailable: full") as error:
            run_recipe(learning(data, url, concurrency=1), data / "run", [])
        assert "--resume" in error.value.hint and len(asked) == 8
    with serving(reversing) as (url, asked):  # elsewhere: replies are known by what was asked, not by where
        record = run_recipe(learning(data, url, concurrency=1), data / "run", [])
    assert len(asked) == 3 and record["steps"]["answers"]["right"] == 8
    gone = learning(data, url, concurrency=1)
    assert run_recipe(gone, data / "run", [])["status"] == "done"  # nobody is asked again


def test_what_is_refused_is_left_out_and_told_unless_it_is_all(data):
    def choosy(body, number):
        return (400, b"not this") if "afk" in body["messages"][-1]["content"] else reversing(body, number)

    with serving(choosy) as (url, _):
        record = run_recipe(learning(data, url, samples=2), data / "run", [])
    assert (record["steps"]["answers"]["answers"], record["steps"]["answers"]["refused"]) == (14, 2)
    told = [line for line in read_jsonl(data / "run" / "metrics.jsonl") if line.get("event") == "refused"]
    assert len(told) == 2 and "400 Bad Request: not this" in told[0]["error"]
    with serving(lambda body, number: (422, b"no such field")) as (url, _), pytest.raises(RunError, match="8 of 8 ans"):
        run_recipe(learning(data, url), data / "other", [])


@pytest.mark.parametrize(
    "more, said",
    [
        ({"generate": "http"}, "evaluation scores the answers of its own model"),
        ({"rl": {"generate": "http"}, "train": {"objective": "grpo"}}, "learns from answers of the model in training"),
        ({"steps": {"a": {"do": "train"}, "b": {"do": "evaluate", "generate": "http"}}}, "an evaluation scores"),
        ({"steps": {"a": {"do": "generate"}, "b": {"do": "train"}}, "generate": "http"}, "an evaluation scores"),
        (
            {"steps": {"a": {"do": "rl", "rl": {"generate": "http"}, "train": {"objective": "grpo"}}}},
            "`rl.generate.sampler` lets another model answer",
        ),
    ],
)
def test_where_the_model_itself_must_answer_another_is_refused(data, more, said):
    sampler = {"sampler": {"kind": "http", "url": "http://127.0.0.1:9/v1", "model": "teacher"}}

    def filled(value):
        if isinstance(value, dict):
            return {key: sampler if one == "http" else filled(one) for key, one in value.items()}
        return value

    with pytest.raises(RecipeError, match=said):
        run_recipe(recipe(data, **filled(more)), data / "run", [])


def test_eval_refuses_another_model(data):
    other = ["generate.sampler.kind=http", "generate.sampler.url=http://127.0.0.1:9/v1", "generate.sampler.model=m"]
    with pytest.raises(RecipeError, match="evaluation scores the answers of its own model"):
        evaluate_model("nano", data="sums", metric="auto", limit=1, overrides=other, console=None)


@pytest.mark.parametrize(
    "sampler, said",
    [
        ({"kind": "http"}, "url: needs a value"),
        ({"kind": "http", "url": "localhost:8000", "model": "m"}, "should match pattern"),
        ({"kind": "http", "url": "http://h/v1", "model": "m", "modle": 1}, "Did you mean `model`"),
        ({"kind": "htpp"}, "Did you mean `http`"),
    ],
)
def test_mistakes_in_a_sampler_show_when_the_recipe_is_read(data, sampler, said):
    with pytest.raises(RecipeError) as error:
        recipe(data, steps={"answers": {"do": "generate", "generate": {"sampler": sampler}}, "b": {"do": "train"}})
    assert said in str(error.value)


@pytest.mark.slow
@pytest.mark.skipif(not is_serve_available(), reason="needs `pip install transformers[serving]`")
def test_nano_learns_from_nano_behind_transformers_serve(data, tmp_path):
    steps = {"answers": {"do": "generate"}, "learn": {"do": "train", "data": "answers"}}
    run_recipe(recipe(data, steps=steps), data / "own", [])
    with answering(tmp_path / "log") as url:
        run_recipe(learning(data, url, model=str(bundled_path("nano"))), data / "run", [])
    own, elsewhere = (read_jsonl(data / name / "steps" / "answers" / "records.jsonl") for name in ("own", "run"))
    assert [line["ids"] for line in own] == [line["ids"] for line in elsewhere]


def rows_learned(folder):
    return [line["ids"][line["prompt_tokens"] :] for line in read_jsonl(folder / "steps/answers/records.jsonl")]


@pytest.mark.parametrize("policy, answers, most", [("drop", 7, 29), ("truncate", 8, 30)])
def test_rows_above_max_tokens_are_left_out_or_cut_and_counted(data, policy, answers, most):
    def wordy(body, number):
        return said("z" * 40) if "afk" in body["messages"][-1]["content"] else reversing(body, number)

    with serving(wordy) as (url, _):
        content = learning(data, url).data | {"data": {"train": "data.jsonl", "validation": None, "test": None}}
        content["data"] |= {"max_tokens": 30, "too_long": policy}
        content["generate"] = {"max_new_tokens": 40}
        record = run_recipe(load_recipe(content, base=data), data / "run", [])
    facts = record["steps"]["answers"]
    assert facts["answers"] == answers and facts["too_long"] == 1 and "refused" not in facts
    lines = read_jsonl(data / "run/steps/answers/records.jsonl")
    assert max(len(line["ids"]) for line in lines) <= most
    assert sum(len(line["ids"]) == 30 for line in lines) == (policy == "truncate")


def test_rows_above_max_tokens_end_the_run_if_the_recipe_says_so(data):
    with serving(lambda body, number: said("z" * 40)) as (url, _):
        content = learning(data, url).data | {"generate": {"max_new_tokens": 40}}
        content["data"] = {
            "train": "data.jsonl",
            "validation": None,
            "test": None,
            "max_tokens": 30,
            "too_long": "error",
        }
        with pytest.raises(DataError, match=r"more than data\.max_tokens 30"):
            run_recipe(load_recipe(content, base=data), data / "run", [])


@pytest.mark.parametrize("own", [False, True])
def test_an_answer_that_ended_at_a_stop_string_is_learned_without_it_and_with_its_end(data, own):
    """From a server and from the model itself alike: the row is what the answer's text is judged for."""
    with serving(lambda body, number: said("kfa")) as (url, _):
        content = learning(data, url).data
        answers = content["steps"]["answers"]
        answers["generate"] |= {"stop": ["f"], "max_new_tokens": 12}
        if own:
            answers["generate"]["sampler"] = "native"
        run_recipe(load_recipe(content, base=data), data / "run", [])
    tokenizer = load_tokenizer(Model(path="nano"), None)
    texts = [line["answer"] for line in read_jsonl(data / "run/steps/answers/records.jsonl")]
    stopped = 0
    for text, learned in zip(texts, rows_learned(data / "run"), strict=True):
        assert "f" not in tokenizer.decode(learned)
        if learned[-1] == tokenizer.eos_token_id:
            assert tokenizer.decode(learned[:-1]) == text
            stopped += 1
    assert stopped
