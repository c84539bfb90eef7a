"""What `luthier check` says to someone with a first file: columns, metric, a trial, refusals that name the cause."""

import contextlib
import io
import json
import shutil

import pytest
from rich.console import Console
from typer.testing import CliRunner

from luthier.cli.app import app
from luthier.errors import DataError, LuthierError, ModelError, RecipeError
from luthier.evals.worked import ExplainedMetric
from luthier.modalities.open import open_workspace
from luthier.parts import PACKAGE
from luthier.recipe import load_recipe, yaml
from luthier.steps.check import examine_recipe
from luthier.steps.check_data import GuessedColumns, write_columns
from luthier.steps.check_page import check_recipe
from luthier.steps.trial import TriedUpdate, try_update

COLOURS = ["red", "blue", "green", "brown", "black", "white", "grey", "pink"]
ASKED = [{"Answer": colour, "Question": f"Colour {n}?", "ID": n} for n, colour in enumerate(COLOURS * 5)]
PAIRS = [{"prompt": row["Question"], "completion": row["Answer"]} for row in ASKED]


@pytest.fixture
def written(tmp_path):
    def write(rows=PAIRS, model="nano", text="data: {{train: {file}}}\n", name="data.jsonl", **blocks):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        more = "".join(f"{key}: {json.dumps(block)}\n" for key, block in blocks.items())
        (tmp_path / "recipe.yaml").write_text(f"model: {model}\n{text.format(file=name)}{more}")
        return tmp_path / "recipe.yaml"

    return write


def checked(file, *overrides):
    """What is printed, and the error at the end."""
    screen, error = io.StringIO(), None
    try:
        check_recipe(load_recipe(file, overrides=list(overrides)), False, Console(file=screen, width=200))
    except LuthierError as caught:
        error = caught
    return screen.getvalue(), error


def invoked(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_columns_are_offered_with_an_example_the_right_way_round(written):
    text, error = checked(written(ASKED))
    assert "columns: {prompt: Question, completion: Answer}" in text and "not read: ID" in text
    assert "Colour 0?<|end|><|assistant|>⟦red<|end|>⟧" in text
    assert error.message.startswith("40 of 40 records") and "--yes" in error.hint
    with pytest.raises(DataError) as run:
        open_workspace(load_recipe(written(ASKED)), None)
    assert "columns: {prompt: Question, completion: Answer}" in run.value.hint


def test_yes_writes_them_into_the_recipe_and_checks_again(written):
    file = written(ASKED, text="data:\n  train: {file}  # all of them\n  test: 20%\n")
    outcome = invoked("check", file, "--yes")
    assert (
        outcome.exit_code == 0
        and "written into" in outcome.output
        and "40 records (40 prompt/completion)" in outcome.output
    )
    assert "# all of them" in file.read_text()
    train = yaml.parse(file.read_text(), "recipe").data["data"]["train"]
    assert train == {"path": "data.jsonl", "columns": {"prompt": "Question", "completion": "Answer"}}


def test_numbers_for_text_are_offered_as_columns_that_may_hold_numbers(written):
    file = written([{"prompt": f"{n} and {n + 1}?", "completion": n * 2 + 1.5} for n in range(30)])
    text, error = checked(file)
    assert "columns: {prompt: prompt, completion: completion}" in text and "--yes" in error.hint
    with pytest.raises(DataError) as run:
        open_workspace(load_recipe(file), None)
    assert "columns: {prompt: prompt, completion: completion}" in run.value.hint
    assert invoked("check", file, "--yes").exit_code == 0
    text, error = checked(written([{"prompt": 4, "completion": True, "completion2": None}] * 9))
    assert "Write numbers and JSON objects as strings" in text and "--yes" not in str(error)


def test_yes_changes_no_other_source_and_no_bundled_recipe(written):
    file = written()
    before = file.read_text()
    written(ASKED, name="other.jsonl")
    file.write_text(before)
    outcome = invoked("check", file, "--yes", "data.train=other.jsonl")
    assert (
        isinstance(outcome.exception, RecipeError) and "data.train.columns: {prompt: Question" in outcome.exception.hint
    )
    assert file.read_text() == before
    (finding,) = [f for f in findings(written(ASKED)) if isinstance(f, GuessedColumns)]
    with pytest.raises(RecipeError, match="that `--yes` could change"):
        write_columns("quickstart", [finding])


def findings(file, *overrides):
    kept = []
    with contextlib.suppress(LuthierError):
        examine_recipe(load_recipe(file, overrides=list(overrides)), False, kept.append)
    return kept


def test_columns_of_unclear_meaning_are_listed_and_none_is_offered(written):
    rows = [{"alpha": "The sea is wide", "beta": f"Trees grow {n}", "gamma": "Birds sing"} for n in range(30)]
    text, error = checked(written(rows))
    assert "nothing is offered" in text and "`beta` (text: 'Trees grow 0')" in text
    assert "--yes" not in str(error)


def test_a_validation_source_of_its_own_gets_its_own_columns(written, tmp_path):
    (tmp_path / "held.csv").write_text("Frage,Antwort\n" + "".join(f"Farbe {n}?,rot {n}\n" for n in range(9)))
    file = written(ASKED, text="data:\n  train: {file}\n  validation: {{path: held.csv}}\n")
    assert invoked("check", file, "--yes").exit_code == 0
    blocks = yaml.parse(file.read_text(), "recipe").data["data"]
    assert blocks["validation"] == {"path": "held.csv", "columns": {"prompt": "Frage", "completion": "Antwort"}}


def test_a_missing_file_has_the_hint_of_a_missing_file(written):
    text, error = checked(written(), "data.train=dta.jsonl")
    assert "There is no file" in error.message and "data.jsonl" in error.hint
    assert "Correct or remove" not in text + str(error)
    assert "1 source cannot be read" in text


def test_records_that_share_a_fault_share_the_hint(written):
    rows = [*PAIRS, *({"prompt": "a", "completion": n > 2} for n in range(5))]
    text, error = checked(written(rows))
    assert "5 × data.jsonl:41, data.jsonl:42 and 3 more: `completion` must be" in text
    assert error.message.startswith("5 of 45 records") and "as strings" in error.hint


@pytest.fixture
def wide(tmp_path):
    """A model folder whose tokenizer has one token more than the embedding."""

    def make(change):
        from transformers import AutoTokenizer

        folder = tmp_path / "wide"
        shutil.copytree(PACKAGE / "models" / "nano", folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        size = json.loads((folder / "config.json").read_text())["vocab_size"]
        tokenizer.add_tokens([f"<fill{n}>" for n in range(size - len(tokenizer))])
        change(tokenizer)
        tokenizer.save_pretrained(folder)
        return size

    return make


def test_a_token_beyond_the_embedding_is_refused_by_check_and_run(written, wide):
    size = wide(lambda tokenizer: tokenizer.add_tokens(["<new>"]))
    file = written([*PAIRS, {"prompt": "Colour?", "completion": "a <new> one"}], model="wide")
    words = rf"'<new>' has the id {size}, and the model's embedding has {size} rows .*data\.jsonl:41"
    with pytest.raises(ModelError, match=words):
        examine_recipe(load_recipe(file), False)
    with pytest.raises(ModelError, match=words):
        open_workspace(load_recipe(file), None)
    outcome = invoked("eval", file.parent / "wide", "--data", file.parent / "data.jsonl")
    assert isinstance(outcome.exception, ModelError) and f"has the id {size}" in outcome.exception.message


def test_a_token_beyond_the_embedding_that_no_record_has_is_harmless(written, wide):
    wide(lambda tokenizer: tokenizer.add_tokens(["<new>"]))
    assert open_workspace(load_recipe(written(model="wide")), None).prepared.train


def test_a_padding_token_beyond_the_embedding_is_harmless(written, wide):
    wide(lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "<pad2>"}))
    workspace = open_workspace(load_recipe(written(model="wide")), None)
    assert workspace.prepared.train and workspace.pad_id == 0


def test_advice_about_length_never_exceeds_what_the_model_reads(written):
    long = [{"prompt": f"say {n}", "completion": "abcdefgh " * (400 + n)} for n in range(8)]
    text, _ = checked(written([*PAIRS, *long]), "data.max_tokens=100", "data.test=null", "data.validation=null")
    assert "the model reads at most 512: `data.max_tokens: 512`" in " ".join(text.split())
    assert "4096" not in text and "8192" not in text


def test_an_objective_that_does_not_fit_the_records_is_refused(written):
    text, error = checked(written(train={"objective": "kto"}))
    assert "`kto` learns from answers that are labelled" in error.message
    assert "methods that fit" not in text


def test_a_failing_update_is_named(written, tmp_path):
    (tmp_path / "mine.py").write_text(
        '"""A loss that fails."""\n\nfrom luthier.objectives.base import TokenObjective\n\n\n'
        "class Mine(TokenObjective):\n"
        '    """Fails when it is used."""\n\n'
        "    def token_loss(self, view):\n"
        '        """Losses [n]."""\n'
        "        return view.logprob[10**6]\n"
    )
    _, error = checked(written(train={"objective": "./mine.py"}))
    assert "with lora fails on this model: IndexError" in error.message


def test_a_large_model_is_not_loaded_and_that_is_said(written):
    import torch

    with torch.device("meta"):
        empty = torch.nn.Linear(10**5, 10**5)
    trial = try_update(load_recipe(written()), None, None, None, empty, 0)
    assert trial == TriedUpdate("sft with lora", 0, None, "10,000 M parameters; `--probe` tries them on the model")


def test_the_metric_is_named_with_its_reason_and_worked_examples(written):
    text, error = checked(written())
    (choice,) = [finding for finding in findings(written()) if isinstance(finding, ExplainedMetric)]
    assert error is None and f"metric  {choice.name} (" in text and choice.reason in text
    assert len(choice.examples) == 3
    for example in choice.examples:
        assert example.right and example.wrong and example.right[1] > example.wrong[1] and not example.mistaken
        assert f"reference {example.reference!r} · right" in text


def test_a_metric_that_takes_one_answer_for_another_is_warned_of(written):
    rows = [{"prompt": f"When was event {n}?", "completion": f"March {n + 1}, 2024"} for n in range(20)]
    text, _ = checked(written(rows, evaluate={"metric": "number"}))
    assert "metric  number (set in the recipe)" in text and "counts as right where the reference is" in text


def test_answers_beside_plain_text_are_warned_of_once(written):
    rows = [{"text": f"The long film {n} was {COLOURS[n % 8]}", "summary": f"Film {n} in few words"} for n in range(40)]
    text, _ = checked(written(rows), "evaluate.metric=perplexity")
    assert text.count("`summary`") == 2 and "columns: {prompt: text, completion: summary}" in text
    assert "method rho: " not in text


def test_labels_beside_plain_text_are_warned_of(written):
    rows = [{"text": f"It was {colour} {n}", "label": n % 2} for n, colour in enumerate(COLOURS * 4)]
    text, _ = checked(written(rows))
    assert "columns: {prompt: text, completion: label}" in " ".join(text.split())


def test_check_ends_with_two_for_anything_refused(written):
    for file in (written(ASKED), written(PAIRS[:0]), written(train={"objective": "dpo"})):
        error = invoked("check", file).exception
        assert isinstance(error, LuthierError) and error.exit_code == 2
    assert invoked("check", written()).exit_code == 0


@pytest.mark.parametrize("policy", ["drop", "truncate"])
def test_a_record_of_megabytes_is_read_at_its_beginning_alone(written, policy, monkeypatch):
    from luthier.data.render import Renderer

    lengths, ids = [], Renderer._ids
    monkeypatch.setattr(
        Renderer, "_ids", lambda self, text, special: lengths.append(len(text)) or ids(self, text, special)
    )
    text, _ = checked(
        written([*PAIRS, {"prompt": "long", "completion": "word " * 400_000}]),
        f"data.too_long={policy}",
        "data.max_tokens=64",
    )
    assert max(lengths) <= 2**16 and "only their beginning was tokenised" in " ".join(text.split())
    assert ("1 dropped, 0 truncated" if policy == "drop" else "0 dropped, 1 truncated") in text


def test_the_beginning_of_a_long_record_has_the_tokens_of_the_whole(written):
    from luthier.data.prepare import prepare
    from luthier.data.render import Renderer
    from luthier.models.loading.load import load_tokenizer

    rows = [{"prompt": "long", "completion": "".join(f"word {n} " for n in range(60_000))}, *PAIRS]
    recipe = load_recipe(
        written(
            rows, text="data: {{train: {file}, test: null, validation: null, too_long: truncate, max_tokens: 64}}\n"
        )
    )
    renderer = Renderer(load_tokenizer(recipe.settings.model, recipe.base))
    prepared = prepare(recipe.settings.data, renderer, recipe.base)
    record = max(prepared.records.values(), key=lambda record: len(record.fields["completion"]))
    (cut,) = [row for row in prepared.train if row.record == record.id]
    whole = renderer.explain(record).row
    assert cut.ids.tolist() == whole.ids[:64].tolist()
    assert cut.streams["weights"].values.tolist() == whole.streams["weights"].values[:64].tolist()
