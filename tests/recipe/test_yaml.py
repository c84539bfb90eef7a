import contextlib
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import RecipeError
from luthier.recipe import methods
from luthier.recipe.yaml import parse


def value(text):
    return parse(f"x: {text}", "r.yaml").data["x"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5e-6", 5e-6),
        ("1e6", 1e6),
        ("2.", 2.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("-3", -3),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
    ],
)
def test_core_schema_values(text, expected):
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_not_a_number():
    assert math.isnan(value(".nan"))


@pytest.mark.parametrize(
    "text", ["yes", "no", "on", "off", "1_000", "12:30:45", "2024-01-01", "10%", "y", "'5'", "0b1"]
)
def test_text_stays_text(text):
    assert value(text) == text.strip("'")


def test_a_key_written_twice_is_an_error_with_both_lines():
    with pytest.raises(RecipeError, match=r"r\.yaml:3: `a` is written twice \(first on line 1\)"):
        parse("a: 1\nb: 2\na: 3\n", "r.yaml")


def test_a_nested_key_written_twice():
    with pytest.raises(RecipeError, match=r"r\.yaml:2: `lr`"):
        parse("a:\n  {lr: 1, lr: 2}\n", "r.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "a: [1, 2",
        "a: 'x",
        "\ta: 1",
        "a: !!python/object:os.system x",
        "a: !mine x",
        "a: !!bool 3",
        "1: x",
        "? [a]\n: b",
        "--- 1\n--- 2",
        "a: &x [*x]",
        "a: \x00",
        'a: "\\UFFFFFFFF"',
        "a: " + "9" * 5000,
        "[" * 1500,
    ],
)
def test_what_cannot_be_read_is_a_recipe_error(text):
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        parse(text, "r.yaml")


def test_errors_carry_the_line():
    with pytest.raises(RecipeError, match=r"r\.yaml:2"):
        parse("a: 1\nb: [", "r.yaml")


def test_lines_of_keys():
    found = parse("a: 1\nb:\n  c: 2\n", "r.yaml")
    assert found.lines == {("a",): 1, ("b",): 2, ("b", "c"): 3}


def test_an_alias_repeats_its_block():
    assert parse("a: &x {b: 1}\nc: *x\n", "r.yaml").data == {"a": {"b": 1}, "c": {"b": 1}}


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(RecipeError):
        parse(text, "r.yaml")


@given(st.text(alphabet="ab:{}[]-,&*!|>'\"\n \t0.e+%#?", max_size=60))
def test_any_punctuation_is_read_or_refused(text):
    with contextlib.suppress(RecipeError):
        parse(text, "r.yaml")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive(number):
    assert value(repr(number)) == number


BOMB = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


def test_aliases_of_aliases_are_refused_with_a_line():
    start = time.monotonic()
    with pytest.raises(RecipeError, match=r"bomb\.yaml:\d.*more than 100,000 values"):
        parse(BOMB, "bomb.yaml")
    assert time.monotonic() - start < 10


def test_such_a_file_beside_it_stops_no_command(tmp_path):
    (tmp_path / "bomb.yaml").write_text(BOMB)
    start = time.monotonic()
    assert "bomb" not in [method.name for method in methods.list_methods(tmp_path)]
    assert time.monotonic() - start < 10
