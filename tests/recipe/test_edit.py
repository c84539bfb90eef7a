import pytest

from luthier.recipe import yaml
from luthier.recipe.edit import with_columns

COLUMNS = "{prompt: [body, question], completion: answer}"


@pytest.mark.parametrize(
    "text",
    [
        "model: nano  # small\ndata: {train: a.csv}  # mine\n",
        "model: nano\ndata:\n  train: a.csv   # the file\n  test: 10%\n",
        "model: nano\ndata:\n  train: 'a b.csv'\n",
        "data:\n  train:\n    # where\n    path: a.csv\n    limit: 3  # few\nmodel: nano\n",
        "data: {train: {path: a.csv, limit: 3}, test: null}\nmodel: nano\n",
        "data: {train: {path: a.csv, columns: {prompt: x}}}\n",
        "data:\n  train:\n    path: a.csv\n    columns:  # wrong\n      prompt: x\n      completion: y\n    limit: 3\n",
        "data: {train: [a.csv, b.csv]}  # two\n",
        "data:\r\n  train:\r\n    path: a.csv\r\nmodel: nano\r\n",
    ],
)
def test_columns_are_written_and_everything_else_stays(text):
    changed = with_columns(text, ("data", "train"), COLUMNS)
    before, after = yaml.parse(text, "a").data, yaml.parse(changed, "b").data
    assert after["data"]["train"].pop("columns") == {"prompt": ["body", "question"], "completion": "answer"}
    train = before["data"]["train"]
    before["data"]["train"] = train if isinstance(train, dict) else {"path": train}
    before["data"]["train"].pop("columns", None)
    assert before == after
    comments = [line.partition("#")[2] for line in text.splitlines() if "#" in line]
    assert all(comment in changed for comment in comments if comment != " wrong")
    assert changed.count("\r\n") == changed.count("\n") or "\r" not in text


@pytest.mark.parametrize(
    "text",
    ["model: nano\n", "data: {train: null}\n", "data:\n  train:\n  - a.csv\n", "data: &d {train: x}\nmore: *d\n"],
)
def test_a_text_that_cannot_be_changed_with_certainty_is_left_alone(text):
    assert with_columns(text, ("data", "train"), COLUMNS) is None
