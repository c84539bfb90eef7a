"""`luthier keys` and `luthier schema`."""

import json


def test_all_keys_are_listed_with_values_default_and_description(command):
    shown = command("keys").out
    assert "train.batch.records: whole number above 0, default 16\n    Records per update" in shown
    assert "rl.groups (kind: denoise): whole number above 0, default 8" in shown
    assert all(len(line) <= 110 for line in shown.splitlines() if line.startswith("    "))


def test_one_block_is_told_alone(command):
    shown = command("keys", "train.save").out
    assert [line.split(":")[0] for line in shown.splitlines() if not line.startswith(" ")] == [
        "train.save",
        "train.save.every",
        "train.save.keep",
    ]


def test_a_key_that_is_none(command):
    result = command("keys", "train.bach")
    assert result.code == 2 and "Did you mean `train.batch`?" in result.error


def test_the_schema_is_json(command):
    schema = json.loads(command("schema").out)
    assert schema["properties"]["model"]["description"] and "Denoise" in schema["$defs"]


def test_a_wrong_value_says_what_the_key_means(command, here):
    result = command("check", "mine.yaml", "data.max_tokens=many")
    assert result.code == 2 and "data.max_tokens: Tokens of a record at most" in result.error


def test_descriptions_fit_the_terminal(command, monkeypatch):
    for columns in (80, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        described = [line for line in command("keys", "train").out.splitlines() if line.startswith("    ")]
        assert columns - 15 < max(map(len, described)) <= columns
