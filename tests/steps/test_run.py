"""Whole runs on nano: results, resume after kill -9 and SIGTERM, and each kind of bad input in words."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from luthier.conformance.tiny import tiny_model
from luthier.errors import DataError, LuthierError, ModelError, RunError
from luthier.processes.worker import main as worker_main
from luthier.processes.worker import work
from luthier.recipe import load_recipe
from luthier.run_folder import RunFolder, read_json, read_jsonl, write_json
from luthier.steps.check_page import check_recipe
from luthier.steps.evaluate import _recipe as recipe_of_evaluation
from luthier.steps.evaluate import evaluate_model
from luthier.steps.run import run_recipe
from support.runs import recipe, run_recipe_until_killed, with_words

HALF = '''
from luthier.evals.base import Metric


class Half(Metric):
    """Every answer is half right."""

    def score(self, prediction, record, reference):
        return 0.5
'''


@pytest.fixture
def data(tmp_path):
    return with_words(tmp_path)


def test_a_run_leaves_its_record_its_scores_and_a_model_that_loads(data):
    run = data / "run"
    record = run_recipe(recipe(data), run, [])
    assert json.loads(json.dumps(record)) == read_json(run / "run.json") and record["status"] == "done"
    train = record["train"]
    assert train["updates"] == 3 and train["records"] == 24 and train["tokens"] > 24 * 5
    assert train["peak_memory_bytes"] > 10**8 and train["estimated_memory_bytes"] > 10**8
    assert [line["update"] for line in read_jsonl(run / "metrics.jsonl")] == [1, 2, 3]
    sets = {line["set"] for line in read_jsonl(run / "evaluation.jsonl")}
    assert sets == {"target", "validation"} and record["evaluation"]["target"]["n"] == 10
    assert record["evaluation"]["perplexity"] > 1
    assert read_jsonl(run / "progress.jsonl")[-1]["seconds_left"] is not None
    assert (run / "model" / "adapter_config.json").is_file() and (run / "model" / "tokenizer.json").is_file()
    assert not (run / "checkpoints").exists()


def test_eval_asks_a_run_s_model_as_the_run_did(data, monkeypatch):
    (data / "half.py").write_text(HALF)
    model = {"path": "nano", "dtype": "float32"}  # bfloat16 rounds otherwise in other company
    settings = recipe(data, "data.render='Q: {prompt} A: {completion}'", "evaluate.metric=./half.py", model=model)
    run_recipe(settings, data / "run", ["target"])
    write_json(data / "run" / "lock.json", settings.to_lock())
    lines = {line["id"]: line for line in read_jsonl(data / "run" / "evaluation.jsonl")}
    (data / "elsewhere").mkdir()
    monkeypatch.chdir(data / "elsewhere")
    assert recipe_of_evaluation("../run", "../data.jsonl", None, []).settings.model.dtype == "float32"
    options = {"data": "../data.jsonl", "limit": None, "overrides": [], "console": Console(file=io.StringIO())}
    found = {item.id: item for item in evaluate_model("../run", metric=None, **options).items}
    assert len(lines) == 16 and {found[name].score for name in lines} == {0.5}
    assert all(found[name].prompt == one["prompt"] for name, one in lines.items())
    assert all(found[name].prediction == one["prediction"] for name, one in lines.items())
    other = {item.id: item for item in evaluate_model("../run", metric="exact", **options).items}
    assert {one.metric for one in other.values()} == {"exact"}


def test_eval_maps_columns_as_it_is_told_or_as_the_run_did(data, monkeypatch):
    rows = [json.loads(line) for line in (data / "data.jsonl").read_text().splitlines()]
    names = {"prompt": "Question", "completion": "Answer"}
    text = "".join(json.dumps({names[key]: row[key] for key in names}) + "\n" for row in rows)
    (data / "mapped.jsonl").write_text(text)
    monkeypatch.chdir(data)
    options = {"limit": 4, "overrides": ["generate.max_new_tokens=2"], "metric": "exact"}
    quiet = Console(file=io.StringIO())
    plain = evaluate_model("nano", data="data.jsonl", console=quiet, **options)
    mapped = evaluate_model("nano", data="mapped.jsonl", columns=names, console=quiet, **options)
    assert [(item.prompt, item.reference) for item in mapped.items] == [
        (item.prompt, item.reference) for item in plain.items
    ]
    settings = recipe(data, "data.train={path: mapped.jsonl, columns: {prompt: Question, completion: Answer}}")
    run_recipe(settings, data / "run", [])
    write_json(data / "run" / "lock.json", settings.to_lock())
    told = Console(file=io.StringIO(), width=200)
    for source in ("mapped.jsonl", "data.jsonl"):
        items = evaluate_model("run", data=source, console=told, **options).items
        assert [(item.prompt, item.reference) for item in items] == [
            (item.prompt, item.reference) for item in plain.items
        ]
    assert told.file.getvalue().count("its own names are read") == 1
    with pytest.raises(DataError, match="no known shape"):
        evaluate_model("nano", data="mapped.jsonl", console=quiet, **options)


def test_eval_asks_a_model_of_a_comparison_as_its_run_did(data, monkeypatch):
    """Such a run has no lock.json: task.json holds its recipe."""
    (data / "half.py").write_text(HALF)
    changes = ["data.render='Q: {prompt} A: {completion}'", "evaluate.metric=./half.py", "generate.max_new_tokens=3"]
    folder = worker(data / "seed-3", recipe(data, *changes, model={"path": "nano", "dtype": "float32"}), seed=3)
    work(folder)
    assert not (folder / "lock.json").exists()
    (data / "elsewhere").mkdir()
    monkeypatch.chdir(data / "elsewhere")
    asked = recipe_of_evaluation("../seed-3", "../data.jsonl", None, []).settings
    assert (asked.seed, asked.generate.max_new_tokens, asked.model.dtype) == (3, 3, "float32")
    options = {"data": "../data.jsonl", "limit": 4, "overrides": [], "console": Console(file=io.StringIO())}
    evaluation = evaluate_model("../seed-3", metric=None, **options)
    assert {item.metric for item in evaluation.items} == {"half"} and evaluation.mean == 0.5
    assert all(item.prompt.startswith("Q: ") for item in evaluation.items)


def test_the_same_recipe_gives_the_same_bits_and_another_seed_others(data):
    def adapter(name, *overrides):
        run_recipe(recipe(data, "data.test=null", "data.validation=null", *overrides), data / name, [])
        return load_file(data / name / "model" / "adapter_model.safetensors")

    one, two, other = adapter("one"), adapter("two"), adapter("other", "seed=1")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def worker(folder, settings, **more):
    folder.mkdir()
    task = {"do": "train", "method": "sft", "seed": 0, "sets": [], "shared": str(folder / "shared"), "fingerprint": ""}
    task["methods"] = {}
    write_json(folder / "task.json", {**task, "recipe": settings.to_lock(), **more})
    return folder


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "luthier.processes.worker", str(folder)],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_updates(folder, count, process):
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if len(read_jsonl(folder / "metrics.jsonl")) >= count:
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate())


def test_kill_minus_nine_and_sigterm_then_resume_give_the_bits_of_one_run(data):
    settings = recipe(data, "budget.updates=40", "train.save.every=1", "data.test=null", "data.validation=null")
    whole, broken = (worker(data / name, settings) for name in ("whole", "broken"))
    process = start(whole)
    process.communicate()
    assert process.returncode == 0
    process = start(broken)
    wait_for_updates(broken, 3, process)
    process.kill()
    process.communicate()
    process = start(broken)
    wait_for_updates(broken, 8, process)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143 and read_json(broken / "run.json")["status"] == "stopped"
    process = start(broken)
    process.communicate()
    assert process.returncode == 0
    one, other = (load_file(folder / "model" / "adapter_model.safetensors") for folder in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [line["update"] for line in read_jsonl(broken / "metrics.jsonl")] == list(range(1, 41))
    one, other = (read_jsonl(folder / "metrics.jsonl") for folder in (whole, broken))
    assert [line["loss"] for line in one] == [line["loss"] for line in other]


def test_a_kill_before_the_first_checkpoint_leaves_no_line_twice(data, monkeypatch):
    from luthier.engine.trainer import Trainer

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe(data), data / "run", [])
    assert len(read_jsonl(data / "run" / "metrics.jsonl")) == 3
    run_recipe(recipe(data), data / "run", [])
    assert [line["update"] for line in read_jsonl(data / "run" / "metrics.jsonl")] == [1, 2, 3]


def test_a_finished_run_is_not_trained_again_nor_replaced(data):
    record = run_recipe(recipe(data), data / "run", [])
    written = (data / "run" / "metrics.jsonl").stat().st_mtime_ns
    assert run_recipe(recipe(data), data / "run", []) == json.loads(json.dumps(record))
    assert (data / "run" / "metrics.jsonl").stat().st_mtime_ns == written
    with pytest.raises(RunError, match="finished run of another recipe"):
        run_recipe(recipe(data, "train.optimizer.lr=0.5"), data / "run", [])
    assert read_json(data / "run" / "run.json")["status"] == "done"


@pytest.mark.parametrize("where", ["open_workspace", "evaluate_sets"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_outside_training_ends_at_once_and_loses_nothing(data, monkeypatch, where, number):
    from luthier.steps import run

    def asked(*_):
        os.kill(os.getpid(), number)
        time.sleep(5)
        raise AssertionError("not ended")

    with monkeypatch.context() as patch:
        patch.setattr(run, where, asked)
        assert run_recipe(recipe(data), data / "run", [])["status"] == "stopped"
    record = run_recipe(recipe(data), data / "run", [])
    assert record["status"] == "done" and record["train"]["updates"] == 3
    assert len(read_jsonl(data / "run" / "metrics.jsonl")) == 3


def test_a_stop_during_the_first_update_saves_it(data, monkeypatch):
    from luthier.engine.trainer import Trainer

    one = Trainer._one_update

    def asked(self):
        os.kill(os.getpid(), signal.SIGINT)
        return one(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_one_update", asked)
        record = run_recipe(recipe(data), data / "run", [])
    assert (record["status"], record["train"]["updates"]) == ("stopped", 1)
    assert run_recipe(recipe(data), data / "run", [])["train"]["updates"] == 3


def test_a_part_may_change_when_the_lock_is_resumed(data, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(data / "cache"))
    (data / "mine.py").write_text(
        "from luthier import TokenObjective\n"
        "class Mine(TokenObjective):\n"
        "    def token_loss(self, view):\n"
        "        return -2 * view.logprob\n"
    )
    settings = recipe(data, "train.objective=./mine.py", "train.save.every=1")
    run_recipe_until_killed(settings, data / "run")
    (data / "mine.py").write_text("changed since")
    assert run_recipe(load_recipe(settings.to_lock()), data / "run", [])["train"]["updates"] == 3


def test_perplexity_keeps_to_the_limit(data, monkeypatch):
    from luthier.modalities.language import workspace as language

    seen = []
    monkeypatch.setattr(language, "perplexity", lambda module, rows, progress: seen.extend(rows) or 1.0)
    run_recipe(recipe(data, "evaluate.limit=4"), data / "run", [])
    assert len(seen) == 4


@pytest.mark.parametrize("do", ["train", "evaluate"])
def test_a_worker_records_what_went_wrong(data, do, monkeypatch, capsys):
    settings = recipe(data)
    (data / "data.jsonl").unlink()
    folder = worker(data / do, settings, do=do)
    monkeypatch.setattr(sys, "argv", ["worker", str(folder)])
    assert worker_main() == DataError.exit_code
    assert "data.jsonl" in capsys.readouterr().err
    assert read_json(folder / "run.json")["status"] == "failed"


def test_a_saved_adapter_is_trained_further_and_leaves_a_whole_model(data):
    def of(path, *overrides):  # merged into bfloat16, an adapter would lose digits
        return recipe(data, *overrides, model={"path": path, "dtype": "float32"})

    first = run_recipe(of("nano"), data / "first", [])
    check_recipe(of("first/model"), False, Console(file=io.StringIO()))
    again = run_recipe(of("first/model", "train.optimizer.lr=1e-12"), data / "again", [])
    assert not (data / "again/model/adapter_config.json").exists()
    third = run_recipe(of("again/model", "train.optimizer.lr=1e-12"), data / "third", [])
    before = first["evaluation"]["perplexity"]
    assert [one["evaluation"]["perplexity"] for one in (again, third)] == pytest.approx([before] * 2, rel=1e-4)


def test_a_worker_leaves_a_folder_alone_that_another_process_writes(data, monkeypatch, capsys):
    folder = worker(data / "held", recipe(data), do="evaluate", sets=["target"])
    monkeypatch.setattr(sys, "argv", ["worker", str(folder)])
    with RunFolder(folder).lock():
        assert worker_main() == 1
    assert "is being written by another process" in capsys.readouterr().err
    assert not (folder / "run.json").exists()


@pytest.mark.parametrize(
    "override, said",
    [
        ("evaluate.retain=retian", "bundled data set `retain`"),
        ("evaluate.metric=choice", "`choices` must be two or more texts"),
        ("evaluate.metric=preference_accuracy", "is no pair of a chosen and a rejected answer"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_training(data, override, said):
    with pytest.raises(LuthierError) as caught:
        run_recipe(recipe(data, override), data / "run", [])
    assert said in str(caught.value)
    assert not (data / "run" / "metrics.jsonl").exists()


def test_a_worker_evaluates_the_base_model(data, monkeypatch):
    folder = worker(data / "base", recipe(data), do="evaluate", sets=["target"])
    monkeypatch.setattr(sys, "argv", ["worker", str(folder)])
    assert worker_main() == 0
    assert read_json(folder / "run.json")["evaluation"]["target"]["n"] == 10
    assert len(read_jsonl(folder / "evaluation.jsonl")) == 10


@pytest.mark.parametrize(
    "changes, said",
    [
        (["train.objective=dpo"], "learns from pairs"),
        (["train.tuner={kind: loramoe, types: quality, delta: 0.1}"], "quality"),
        (["train.objective=grpo"], "samples itself"),
    ],
)
def test_a_method_that_does_not_fit_is_refused_with_the_base(data, monkeypatch, changes, said):
    methods = {"sft": recipe(data).to_lock(), "other": recipe(data, *changes).to_lock()}
    folder = worker(data / "base", recipe(data), do="evaluate", sets=["target"], methods=methods)
    monkeypatch.setattr(sys, "argv", ["worker", str(folder)])
    assert worker_main() == 2
    left = read_json(folder / "run.json")
    assert left["status"] == "failed" and "Method `other` cannot be trained here" in left["error"]
    assert said in left["error"] and not (folder / "evaluation.jsonl").exists()


def test_a_run_may_not_go_on_under_another_recipe(data):
    run_recipe_until_killed(recipe(data, "train.save.every=1"), data / "run")
    with pytest.raises(RunError, match="another recipe"):
        run_recipe(recipe(data, "train.save.every=1", "train.optimizer.lr=0.5"), data / "run", [])


def test_longer_than_the_context(data):
    long = {"prompt": "reverse", "completion": "abc " * 2000}
    (data / "data.jsonl").write_text(json.dumps(long) + "\n" + json.dumps({**long, "prompt": "x"}) + "\n")
    with pytest.raises(DataError, match=r"data.jsonl:\d.* reads at most"):
        run_recipe(recipe(data, "data.max_tokens=100000", "data.test=null", "data.validation=null"), data / "run", [])


def test_everything_too_long(data):
    with pytest.raises(DataError):
        run_recipe(recipe(data, "data.max_tokens=2"), data / "run", [])


def test_a_folder_that_is_no_model(data):
    (data / "empty").mkdir()
    with pytest.raises(ModelError, match="empty"):
        run_recipe(recipe(data, model="./empty"), data / "run", [])


def test_messages_for_a_model_without_a_template(data):
    from luthier.models.loading.load import load_tokenizer

    tokenizer = load_tokenizer(recipe(data).settings.model, data)
    tokenizer.chat_template = None
    tiny_model(torch.float32).save_pretrained(data / "base")
    tokenizer.save_pretrained(data / "base")
    for file in (data / "base").glob("chat_template*"):
        file.unlink()
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    lines = [json.dumps({"messages": [*turns, {"role": "user", "content": str(i)}, turns[1]]}) for i in range(5)]
    (data / "data.jsonl").write_text("\n".join(lines))
    with pytest.raises((ModelError, DataError), match="chat template"):
        run_recipe(recipe(data, "data.test=null", "data.validation=null", model="./base"), data / "run", [])


def test_an_objective_of_the_users_trains(data):
    (data / "mine.py").write_text(
        "from luthier import TokenObjective\n"
        "class Mine(TokenObjective):\n"
        "    def token_loss(self, view):\n"
        "        return -2 * view.logprob\n"
    )
    record = run_recipe(recipe(data, "train.objective=./mine.py"), data / "run", [])
    first = read_jsonl(data / "run" / "metrics.jsonl")[0]
    assert record["status"] == "done" and first["loss"] == pytest.approx(2 * first["nll"])


def test_full_fine_tuning_with_asft_uses_a_frozen_copy(data):
    record = run_recipe(recipe(data, "train.tuner=full", "train.objective=asft"), data / "run", [])
    lines = read_jsonl(data / "run" / "metrics.jsonl")
    assert record["status"] == "done" and abs(lines[0]["kl"]) < 1e-6 < lines[-1]["kl"]
    assert (data / "run" / "model" / "model.safetensors").is_file()


def test_no_space_left_for_the_model_is_an_error_and_the_checkpoint_stays(data, monkeypatch):
    from luthier.engine import checkpoints

    def full(tensors, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(RunError, match="could not be written"):
        run_recipe(recipe(data), data / "run", [])
    assert read_json(data / "run" / "run.json")["status"] == "failed"


def test_two_processes_train_as_one_does(data):
    from luthier.processes.torchrun import run_on_ranks

    settings = recipe(data, "train.precision=float64", "data.validation=null")
    alone = run_recipe(settings, data / "alone", [])
    (data / "together").mkdir()
    together = run_on_ranks(settings, data / "together", 2)
    assert together["status"] == "done"
    assert together["train"]["records"] == alone["train"]["records"]
    assert together["evaluation"]["target"]["n"] == 10
    one, other = (load_file(data / name / "model" / "adapter_model.safetensors") for name in ("alone", "together"))
    assert all(torch.allclose(one[name], other[name], rtol=1e-5, atol=1e-8) for name in one)


@pytest.mark.slow
def test_processes_asked_once_save_and_a_finished_run_stays(data):
    from luthier.processes.torchrun import run_on_ranks

    settings, folder = recipe(data, "budget.updates=60", "data.test=null", "data.validation=null"), data / "run"
    folder.mkdir()

    def ask_after_three_updates():
        deadline = time.monotonic() + 90
        while len(read_jsonl(folder / "metrics.jsonl")) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    asking = threading.Thread(target=ask_after_three_updates)
    asking.start()
    stopped = run_on_ranks(settings, folder, 2)
    asking.join()
    assert stopped["status"] == "stopped" and 3 <= stopped["train"]["updates"] < 60
    record = run_on_ranks(settings, folder, 2)
    assert record["status"] == "done"
    assert [line["update"] for line in read_jsonl(folder / "metrics.jsonl")] == list(range(1, 61))
    assert run_on_ranks(settings, folder, 2) == record


@pytest.mark.slow
def test_a_rank_that_fails_is_told(data):
    from luthier.processes.torchrun import run_on_ranks

    settings = recipe(data)
    (data / "data.jsonl").unlink()
    (data / "run").mkdir()
    with pytest.raises(RunError, match=r"data\.jsonl"):
        run_on_ranks(settings, data / "run", 2)
