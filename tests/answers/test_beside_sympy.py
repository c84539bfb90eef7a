"""The reader beside sympy: terms in the forms in which sympy writes them, and terms that sympy says are others."""

import random

import pytest
import sympy

from luthier.answers.mathematics import judge

X, Y, A, N = sympy.symbols("x y a n")
FORMS = (sympy.expand, sympy.factor, sympy.together, sympy.simplify)


def number(draw):
    ratio = sympy.Rational(draw.randint(-9, 9) or 1, draw.randint(1, 7))
    surd = sympy.sqrt(draw.randint(2, 12))
    return draw.choice(
        [ratio, ratio * surd, ratio * sympy.pi, ratio + surd, sympy.log(draw.randint(2, 9)), ratio * sympy.I + 2]
    )


def term(draw):
    c, d = (draw.randint(-6, 6) or 2 for _ in range(2))
    return draw.choice(
        [
            c * X + d,
            c * X**2 + d * X + 1,
            (X + c) * (X - d),
            (X + c) / (X * X + d * d + 1),
            sympy.sqrt(X**2 + c * c) + d * Y,
            sympy.sin(c * X) + sympy.cos(Y),
            c * X**N + d * A,
            X**c * sympy.exp(d * X),
        ]
    )


@pytest.mark.parametrize("make", [number, term])
def test_forms_of_a_term_are_equal_and_others_are_not(make):
    draw = random.Random(7)
    for _ in range(40):
        expression = make(draw)
        gold = f"\\boxed{{{sympy.latex(expression)}}}"
        for form in FORMS:
            assert judge(f"\\boxed{{{sympy.latex(form(expression))}}}", gold) == 1, (form(expression), gold)
        short = sympy.latex(expression, fold_short_frac=True)
        assert judge(f"\\boxed{{{short}}}", gold) == 1, (short, gold)
        for other in (-expression, 2 * expression, expression + 1, 10 * expression):
            if sympy.simplify(other - expression) != 0:
                assert judge(f"\\boxed{{{sympy.latex(other)}}}", gold) == 0, (other, gold)
