"""The reader of mathematical answers: written forms against the same value, its negative and other values."""

import importlib.util
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.answers.mathematics import judge

PAIRS = Path(__file__).parents[2] / "bench" / "reader_pairs.py"

CASES = [
    (r"\boxed{\frac{3}{4}}", r"\boxed{-\frac{3}{4}}", 0),
    (r"-\frac{1}{2}", "1/2", 0),
    (r"\boxed{-\frac{1}{2}}", "-0.5", 1),
    (r"\boxed{3,2}", r"\boxed{1,2}", 0),
    (r"\boxed{2}", r"\boxed{1,2}", 0),
    (r"\boxed{3;2}", r"\boxed{1;2}", 0),
    (r"\boxed{1:4}", r"\boxed{3:4}", 0),
    (r"\boxed{2y}", r"\boxed{2x}", 0),
    (r"\boxed{2}", r"\boxed{2x}", 0),
    (r"\boxed{3i}", "3", 0),
    (r"\boxed{7!}", "7", 0),
    (r"\boxed{√5}", "5", 0),
    (r"\boxed{5²}", "5", 0),
    (r"\boxed{±5}", "5", 0),
    (r"\boxed{log 5}", "5", 0),
    (r"\boxed{not 5}", "5", 0),
    (r"\boxed{1 2 3 4}", "4", 0),
    (r"\boxed{x=5}", "5", 1),
    (r"\boxed{(-5)}", "-5", 1),
    (r"\boxed{90^\circ}", "90", 1),
    (r"\boxed{10^{3}}", "1000", 1),
    (r"\boxed{\frac12}", "1/2", 1),
    ("0.5%", "50%", 0),
    (r"\boxed{0.5\%}", r"\boxed{50\%}", 0),
    ("5000%", "50%", 0),
    ("50%", "50", 1),
    ("50%", "0.5", 1),
    ("0.5", "50%", 1),
    ("−5", "-5", 1),
    ("１２３", "123", 1),
    ("1,234", "1234", 1),
    ("1,234", "1.234", 0),
    ("1.234", "1,234", 0),
    ("1.234,56", "1234.56", 0),
    ("1e5", "100000", 1),
    ("5.", "5", 1),
    (".5", "0.5", 1),
    ("0.50", "0.5", 1),
    ("50 %", "50%", 1),
    ("$5", "5", 1),
    ("5 dollars", "$5", 1),
    ("five", "5", 1),
    (r"\dfrac{1}{2}", "0.5", 1),
    (r"\tfrac{1}{2}", "1/2", 1),
    (r"\frac{\sqrt{2}}{2}", r"1/\sqrt{2}", 1),
    ("1/√2", r"\sqrt{2}/2", 1),
    ("(1,2)", "(2,1)", 0),
    ("(1,2)", "(1, 2)", 1),
    ("[0,1)", "(0,1)", 0),
    ("[0,1)", "[0, 1)", 1),
    ("{1,2}", "{2,1}", 1),
    (r"\{1,2\}", r"\{2,1\}", 1),
    (r"\{1,2\}", r"\{2,3\}", 0),
    ("x=5", "5", 1),
    (r"5\text{ cm}", "5", 1),
    (r"5\text{ cm}", "5 cm", 1),
    (r"5\text{ cm}", r"5\text{ m}", 0),
    ("500 cm", "5 m", 1),
    (r"\text{yes}", r"\boxed{yes}", 1),
    (r"\boxed{no}", r"\boxed{on}", 0),
    (r"\boxed{A}", r"\boxed{a}", 0),
    (r"\boxed{Yes}", r"\boxed{yes}", 1),
    (r"\boxed{7} and then \boxed{8}", "8", 1),
    (r"\boxed{5} is the answer, as 2+2=4", "5", 1),
    (r"\boxed{\frac{\sqrt{3}}{\sqrt{2}}}", r"\sqrt{1.5}", 1),
    (r"\boxed{}", "5", 0),
    ("no answer", "5", 0),
    ("the answer is 5.", "5", 1),
    ("5 or 6", "5", 0),
    ("5 or 6", "6", 0),
    ("-5", "5", 0),
    ("5", "-5", 0),
    ("2-1", "2", 0),
    ("pages 3-5", "5", 0),
    ("inf", "5", 0),
    ("nan", "5", 0),
    ("10^{100}", "1e100", 1),
    ("the area is 5 square cm", "5 cm^2", 1),
    (r"\boxed{2\frac{1}{2}}", "2.5", 1),
    ("2 1/2", "2.5", 1),
    (r"-2\frac{1}{2}", "-2.5", 1),
    (r"\boxed{2\sqrt{3}}", r"\boxed{\sqrt{12}}", 1),
    (r"\boxed{\pi}", "3.14", 0),
    (r"\boxed{2\pi}", "2π", 1),
    (r"\boxed{(x+1)^2}", r"\boxed{x^2+2x+1}", 1),
    (r"\boxed{3\cdot 10^{-5}}", "0.00003", 1),
    (r"\boxed{y=2x+1}", r"\boxed{2x+1}", 1),
    (r"\boxed{x<5}", r"\boxed{(-\infty,5)}", 1),
    (r"\boxed{x\le5}", r"\boxed{x<5}", 0),
    (r"\boxed{x=1 \text{ or } x=2}", r"\boxed{1,2}", 1),
    (r"\boxed{x=\pm 2}", r"\boxed{-2,2}", 1),
    (r"\boxed{1\pm\sqrt{2}}", r"\boxed{1+\sqrt2, 1-\sqrt2}", 1),
    ("5 million", "5", 0),
    ("5 million", "5,000,000", 1),
    ("$5", "€5", 0),
    ("$5", "500 cents", 1),
    (r"\boxed{180^\circ}", r"\boxed{\pi}", 1),
    ("so the total is $1,234.50.", "1234.5", 1),
    ("9 (apples)", "9", 1),
    ("so 40+2=42", "42", 1),
    ("so 40+3=42", "42", 0),
    ("The answer is 12 apples.", "12", 1),
    ("The answer is 5!", "5", 1),
    (r"\boxed{5!}", "120", 1),
    (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", 1),
    (r"\boxed{\begin{pmatrix} 2 \\ 1 \end{pmatrix}}", r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", 0),
    (r"\boxed{9**9**9}", "5", 0),
    (r"\boxed{9^{9^{9^9}}}", "5", 0),
    (r"\boxed{1/0}", "5", 0),
    ("it is 12km", "12", 1),
    ("in 2020, 5 people", "5", 1),
    ("x^2", "2", 0),
    (r"the answer is \sqrt{2}", "2", 0),
    (r"the answer is $\sqrt{2}$.", r"\sqrt2", 1),
    ("so (1, 2).", "(1,2)", 1),
    ("I have 5 apples, and H2O", "5", 1),
    (r"\boxed{101_2}", "101", 0),
    (r"\boxed{(10,000, 20,000)}", r"\boxed{(10000,20000)}", 1),
    (r"\boxed{12\text{kg}}", "12", 1),
    (r"\boxed{\text{(A)}}", r"\boxed{A}", 1),
    ("answer: 5 a day", "5", 1),
    (r"\boxed{1,000}", "1000", 1),
    (r"\boxed{|x|}", r"\boxed{x}", 0),
    (r"\boxed{1{,}000}", "1000", 1),
    (r"\boxed{(1,234)}", "1234", 0),
    (r"\boxed{3.0}", "3", 1),
    (r"\boxed{-2^2}", "-4", 1),
    (r"\boxed{5 - 2x}", r"\boxed{-2x+5}", 1),
    ("- 5", "-5", 1),
    ("total: - 5", "-5", 1),
    ("I had 7 - 5", "-5", 0),
    (r"\boxed{2-1}", "1", 1),
    ("50 percent", "0.5", 1),
]


@pytest.mark.parametrize(("text", "gold", "value"), CASES)
def test_answers_as_a_person_reads_them(text, gold, value):
    assert judge(text, gold) == value
    if (
        value == 1
        and text.startswith("\\boxed{")
        and text.endswith("}")
        and text.count("boxed") == 1
        and "!" not in text
    ):
        assert judge(f"#### {text[7:-1]}", gold) == 1, "the mark reads as the box does"


def made_up_pairs():
    spec = importlib.util.spec_from_file_location("reader_pairs", PAIRS)
    module = importlib.util.module_from_spec(spec)
    sys.modules["reader_pairs"] = module
    spec.loader.exec_module(module)
    return module.pairs(most=6000)


def test_no_written_form_is_taken_for_its_negative_or_a_multiple():
    pairs = made_up_pairs()
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
