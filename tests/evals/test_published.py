"""References as published data sets of exercises write them: the metric that `auto` takes, and what it calls right."""

import pytest

from luthier.evals.evaluate import assign_metrics

ASDIV = ["9 (apples)", "27 (years old)", "3 (km)", "0.5 (kg)", "1/3", "12 (cents)", "250 (dollars)", "44 (students)"]
SVAMP = ["7.0", "145.0", "2.0", "36.0"]
MAWPS = ["5.0", "0.75", "1200", "33.33"]
GSM = ["Tom has 3 * 4 = <<3*4=12>>12 pens.\n#### 12", "So 1000 + 34 = <<1000+34=1034>>1,034.\n#### 1,034"]
MATH = [
    r"We have $x^2 = 4$, so $x = \boxed{-2}$ since $x$ is negative.",
    r"The slope is $\frac{3}{4}$; so the probability is $\boxed{\dfrac{1}{4}}$.",
    r"Then $\boxed{\left( 3, \frac{\pi}{2} \right)}$ in polar coordinates.",
    r"It follows that $x\in \boxed{[0,1)}$.",
    r"The answers are $\boxed{1,-2}$.",
    r"Hence the choice is $\boxed{\text{(C)}}$, and $y = 3$.",
    r"Thus it is $\boxed{2\sqrt{3}}\text{ cm}$.",
]
MATH_ANSWERS = [r"\frac{3}{4}", "27", r"\left( 3, \frac{\pi}{2} \right)", "p - q", r"\text{east}", "-2", r"2\sqrt{3}"]


def scored(record, references, predictions):
    records = [record(str(index), completion=text) for index, text in enumerate(references)]
    metrics, reason = assign_metrics(records, {str(i): text for i, text in enumerate(references)}, "auto", None)
    kinds = [metrics[str(index)].kind for index in range(len(references))]
    scores = [
        metrics[str(index)].score(prediction, records[index], references[index])
        for index, prediction in enumerate(predictions)
    ]
    return kinds, scores, reason


@pytest.mark.parametrize(
    ("references", "metric"), [(ASDIV, "number"), (SVAMP, "number"), (MAWPS, "number"), (GSM, "number"), (MATH, "math")]
)
def test_auto_takes_the_metric_by_which_each_reference_is_right_alone(record, references, metric):
    kinds, scores, reason = scored(record, references, references)
    assert kinds == [metric] * len(references) and scores == [1] * len(references), reason
    turned = references[1:] + references[:1]
    assert scored(record, references, turned)[1] == [0] * len(references)


def test_models_answer_in_other_words(record):
    answers = ["He has 9 apples.", "27", "3 kilometers", "0.50", r"\frac{1}{3}", "12 cents", "$250", "44.0"]
    assert scored(record, ASDIV, answers)[1] == [1] * 8
    assert scored(record, SVAMP, ["7", "It is 145.", "2.00", "36 apples"])[1] == [1] * 4
    assert scored(record, SVAMP, ["-7", "1450", "0.2", "3.6"])[1] == [0] * 4
    wrong = ["2", r"$-\frac{1}{4}$", r"\boxed{(\frac{\pi}{2}, 3)}", "(0, 1)", r"\boxed{1}", "A", r"\boxed{-2\sqrt3}"]
    right = [
        "So x = -2.",
        "0.25",
        r"\boxed{(3, \pi/2)}",
        r"\boxed{[0, 1)}",
        r"\boxed{-2, 1}",
        r"\boxed{C}",
        r"\boxed{\sqrt{12}}",
    ]
    assert scored(record, MATH, right)[1] == [1] * 7
    assert scored(record, MATH, wrong)[1] == [0] * 7


def test_answers_of_math_without_a_box(record):
    kinds, scores, _ = scored(record, MATH_ANSWERS * 3, MATH_ANSWERS * 3)
    assert scores == [1] * 21 and set(kinds) == {"math"}
    boxed = [f"Thus $\\boxed{{{text}}}$." for text in MATH_ANSWERS]
    assert scored(record, MATH_ANSWERS, boxed)[1] == [1] * 7
    assert scored(record, MATH_ANSWERS, [f"\\boxed{{-{text}}}" for text in MATH_ANSWERS])[1] == [0] * 7
