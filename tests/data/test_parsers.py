import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.parsers import boxed, names_two_numbers, parse_json, parse_number, unclear_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", "42"),
        ("first 3, then 1,234.50 dollars", "1234.50"),
        ("it cost $1,234,567", "1234567"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("the sum is −7°C", "-7"),
        ("9 - 4", "4"),
        ("16-3", "3"),
        ("pages 3–4", "4"),
        ("about 12km", "12"),
        ("45%", "45"),
        (".5", "0.5"),
        ("2.5e3 bytes", "2500"),
        ("3/4 of it", "0.75"),
        ("1 1/2 cups", "1.5"),
        (r"so $\frac{3}{4}$", "0.75"),
        ("on 12/05/2024", "2024"),
        ("He pays 2 and 3.\n#### 1,080 euro, i.e. 5 each", "1080"),
        ("1'000", "1000"),
        ("3,5 or rather 7", "7"),
        (r"-\frac{1}{2}", "-0.5"),
        (r"so x = -\dfrac{3}{4}.", "-0.75"),
        (r"\frac{-3}{4}", "-0.75"),
        (r"-\frac{-3}{4}", "0.75"),
        (r"\frac12", "0.5"),
        (r"-2\frac{1}{2}", "-2.5"),
        (r"9-\frac{1}{2}", "0.5"),
        ("x = - 3", "-3"),
        ("- 3", "-3"),
        ("(− 3)", "-3"),
        ("1{,}000", "1000"),
        ("１２．５", "12.5"),
        ("－７", "-7"),
        ("3 million people", "3000000"),
        ("2.5 thousand", "2500"),
        ("2 dozen eggs", "24"),
        (r"750 \times 10^{-3}", "0.75"),
        (r"-1.5\cdot10^3 m", "-1500"),
        ("1.5 × 10⁻³", "0.0015"),
        ("2x10^3", "2000"),
        ("10**2", "100"),
        ("10^{5}", "100000"),
        ("3 * 10 = 30", "30"),
        (r"-\$0.75", "-0.75"),
        ("it is minus 5", "-5"),
        ("7 minus 5", "5"),
        ("version 1.5.2 costs 7", "7"),
        ("answer: 0.", "0"),
    ],
)
def test_the_answer_number_is_found(text, number):
    assert parse_number(text) == Decimal(number)


@pytest.mark.parametrize(
    "text", ["", "none", "x2", "H2O", "5/0", "9" * 5000, "####", "3,5", "1,2345", "1.234,56", "2 at 3,5", "1,2,3"]
)
def test_what_is_no_number_is_none(text):
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "digits"), [("3,5", "3,5"), ("7 and 3,5 l", "3,5"), ("3,5 and 7", None), ("1,234", None)]
)
def test_digits_with_a_comma_may_be_unclear(text, digits):
    assert unclear_number(text) == digits


def test_two_numbers_are_no_answer():
    assert [names_two_numbers(text) for text in ("5 or 6", "5 apples or 6", "5, or so 6", "6", "for 6")] == [
        True, True, False, False, False
    ]  # fmt: skip


def test_a_mark_decides_where_to_look():
    assert parse_number("1 Answer: 2 or 3", after="Answer:") == 2
    assert parse_number("1 2 3", after="Answer:") is None
    assert parse_number("Answer: 1. Answer: 2.", after="Answer:") == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('Sure: {"a": {"b": [1, "}"]}} and more {"c": 2}', {"a": {"b": [1, "}"]}}),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ("a {brace} then\n```\n[1, 2]\n```", [1, 2]),
        ('He said "hi and {"a": "é"}', {"a": "é"}),
        ('open { and {"a": 1}', {"a": 1}),
        ("[1, 2]", [1, 2]),
    ],
)
def test_the_answer_json_is_found(text, value):
    assert parse_json(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "42", "null", '"text"', "{'a': 1}", '{"a": NaN}', '{"a": Infinity}', '{"a": 1e999}', '{"a": 1, "a": 2}',
        '{"a": 1', '{"a": 1,}', "see [1] for it", "{", "9" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_json_is_not_accepted(text):
    assert parse_json(text) is None


HOSTILE = ["[" * 100_000, "{" * 100_000, '{"a":' * 30_000, "```" * 50_000, "1," * 100_000, "1/" * 100_000]
HOSTILE += ["-" * 100_000, "1,234" * 50_000, "\\frac{" * 20_000, '{"a": [' * 20_000, "1 2/" * 50_000, "9" * 100_000]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:8])
def test_hostile_text_ends_soon(text):
    started = time.process_time()
    parse_json(text)
    parse_number(text)
    assert time.process_time() - started < 3


@given(
    st.text(alphabet=st.characters(), max_size=200) | st.text(alphabet='0123456789,./-+eE$ {}[]":`#\\frac', max_size=80)
)
def test_any_text_is_answered(text):
    number, value = parse_number(text), parse_json(text)
    assert number is None or number.is_finite()
    assert value is None or isinstance(value, dict | list)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**9), max_value=10**9))
def test_a_written_number_is_read_back(number):
    assert parse_number(f"so the total is {number:,} euros.") == number


def test_the_last_complete_box():
    assert boxed(r"\boxed{1} so \boxed{\frac{1}{2}} and \boxed{3") == r"\frac{1}{2}"
    assert boxed("plain boxed{ 3 }") == "3"
    assert boxed("{3}") is None
    assert boxed(r"\boxed{" * 5000) is None
