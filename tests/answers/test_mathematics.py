"""The reader of mathematical answers: written forms against the same value, its negative and other values."""

import importlib.util
import random
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.answers.mathematics import judge
from luthier.data.parsers import parse_number

PAIRS = Path(__file__).parents[2] / "bench" / "reader_pairs.py"


def pairs_module():
    spec = importlib.util.spec_from_file_location("reader_pairs", PAIRS)
    module = importlib.util.module_from_spec(spec)
    sys.modules["reader_pairs"] = module
    spec.loader.exec_module(module)
    return module


def test_the_reader_of_numbers_reads_every_written_form_of_a_number():
    """The metric `number`: a percent sign is a unit there."""
    forms = 0
    for group in pairs_module().groups(random.Random(0)):
        for answer in (answer for value in group for answer in value):
            if answer.key[0] == "number" and answer.key[2:] == (1, 0):
                forms += 1
                number = answer.key[1] * (100 if answer.percent else 1)
                written = parse_number(answer.text)
                assert written is not None and abs(Fraction(written) - number) <= abs(number) / 10**20, answer
    assert forms > 1000


def test_no_written_form_is_taken_for_its_negative_or_a_multiple():
    pairs = pairs_module().pairs(most=6000)
    assert len(pairs) == 6000 and 600 < sum(right for *_, right in pairs) < 5400
    wrong = []
    for text, answer, gold, right in pairs:
        if judge(text, f"\\boxed{{{gold.text}}}") != float(right):
            wrong.append((text, answer.form, gold.text, gold.form, right))
    assert wrong == []


@pytest.mark.parametrize(
    ("gold", "value"),
    [("", None), ("no number", None), ("it depends on the weather", None), ("####", None), ("\\boxed{}", None),
     ("north", None),
        ("x", None),
        ("#### north", 0), (r"\text{no solution}", 0), ("x+1", 0), (r"\boxed{no number}", 0), ("so it is 7", 0)],
)  # fmt: skip
def test_a_gold_text_without_an_answer_judges_nothing(gold, value):
    assert judge("12", gold) == value
    if value is not None:
        assert judge(gold, gold) == 1


HOSTILE = [
    "9**9**9",
    "9^{9^{9^{9}}}",
    "\\sin(9^{9^9})",
    "99999!",
    "((9!)!)!",
    "\\binom{10^9}{10^8}",
    "2^{-10^{9}}",
    "1e9999",
    "\\sqrt[10^9]{2}",
    "(" * 100_000,
    "(" * 150 + "1" + ")" * 150,
    "{" * 390,
    "\\frac{" * 50_000,
    "1," * 100_000,
    "-" * 300,
    "\\sqrt" * 80,
    "1/" * 190 + "1",
    "2^" * 190 + "2",
    "x" * 390,
    "x+" * 190 + "x",
    "\\pm1" * 40,
    "\\{" * 100 + "1",
    "(1+x)^{999}",
    "\\log_{1}{2}",
    "0^{-1}",
    "\\infty-\\infty",
    "1," * 120 + "1",
    "|" * 300,
    "1 1/2 " * 60,
    "\\begin{pmatrix}" * 20,
    "x_" * 150,
    "(1,2)" * 60,
    "e^{e^{e^{e^{e^{9}}}}}",
    "\\arcsin(10^{50})",
    "\\cosh(10^9)",
    "$" * 100_000,
    "$1" * 100_000,
    "answer is " * 20_000,
    "\\boxed{" * 20_000,
    "1\\% " * 30_000,
    "\\text{" * 30_000,
    "١٢" * 50_000,
    "½" * 50_000,
    "²" * 100_000,
    " " * 100_000 + "1",
    "1" + " " * 100_000 + "x",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:10])
def test_hostile_answers_end_soon(text):
    started = time.process_time()
    for answer in (text, f"\\boxed{{{text}}}"):
        for gold in ("42", "\\boxed{x^2}", answer):
            assert judge(answer, gold) in (0.0, 1.0, None)
    assert judge("42", f"\\boxed{{{text}}}") in (0.0, 1.0, None)
    assert time.process_time() - started < 3


PIECES = [
    "1",
    "2",
    "x",
    "-",
    "+",
    "*",
    "/",
    "^",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    ",",
    "\\frac",
    "\\sqrt",
    "\\pi",
    "=",
    "<",
    "%",
    "\\pm",
    " ",
    "cm",
    "$",
    "!",
    "\\{",
    "\\}",
    "|",
    "or",
    ".",
    "\\text{",
    "\\boxed{",
    "####",
    "answer is ",
    "e",
    "0",
    "\\sin",
]


@given(
    st.lists(st.sampled_from(PIECES), max_size=14).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
)
def test_any_answer_is_judged_and_equals_itself(text, gold):
    assert judge(text, gold) in (0.0, 1.0, None)
    assert judge(gold, gold) in (1.0, None)


def test_tolerance_is_relative_to_the_gold_number_and_exact():
    assert judge("3.14", "\\boxed{\\pi}", 0.001) == 1
    assert judge("3.14", "\\boxed{\\pi}", 0.0001) == 0
    assert judge("-3.14", "\\boxed{\\pi}", 0.001) == 0
    assert judge("1.1", "1", 0.1) == 1
    assert judge("(1.05, 2)", "(1, 2)", 0.1) == 1
    assert judge("(1.05, 3)", "(1, 2)", 0.1) == 0
