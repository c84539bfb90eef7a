"""Judges of answers: the same answer in another form is right, one with another value is wrong, and none takes long.

Rewards and metrics that read the same kind of answer are held to the same properties.
"""

import json
from decimal import Decimal

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from luthier.parts import build
from luthier.rewards._guard import TooSlow, within
from luthier.rewards.base import Answer, Judged
from luthier.types import Record

MOMENT = 5.0
"""Seconds for an answer of 20,000 pieces; what backtracks takes minutes."""


def value(name, text, gold, **fields):
    """What a reward says."""
    spec = {"kind": name, **fields.pop("options", {})}
    record = Record("r", "prompt_completion", fields, "data.jsonl:3")
    found = build("reward", spec).score(Answer(text, record, gold))
    return found.value if isinstance(found, Judged) else found


def measured(name, text, gold, **options):
    """What a metric says."""
    record = Record("r", "prompt_completion", {}, "data.jsonl:3")
    return build("metric", {"kind": name, **options}).score(text, record, gold)


# Numbers

NUMBERS = st.decimals(min_value=-(10**9), max_value=10**9, places=3, allow_nan=False, allow_infinity=False)
WORDS = st.sampled_from(
    ["so it is ", "The answer: ", "= ", "I add 3 and 4, then ", "\n#### ", "thus $", "(a) 7, then "]
)


def plain(number):
    return f"{number.normalize():f}"


FORMS = [
    lambda n: plain(n),
    lambda n: f"{n:,f}",
    lambda n: f"{n:+f}",
    lambda n: f"{n:.6f}",
    lambda n: f"\\boxed{{{plain(n)}}}",
    lambda n: f"${plain(n)}$",
    lambda n: f"{plain(n)} apples.",
    lambda n: f"{int(n * 1000)}/1000",
    lambda n: f"\\boxed{{\\frac{{{int(n * 1000)}}}{{1000}}}}",
    lambda n: f"{int(n * 1000)}e-3",
]


@given(NUMBERS, WORDS, st.sampled_from(FORMS))
def test_a_number_in_another_form_is_right(number, words, form):
    text = words + form(number)
    assert value("math", text, f"#### {plain(number)}") == 1
    if "boxed" not in text:
        assert measured("number", text, plain(number)) == 1


@given(NUMBERS, NUMBERS, WORDS, st.sampled_from(FORMS))
def test_another_number_is_wrong(number, change, words, form):
    assume(change != 0 and -change != number * 2 if number else change != 0)
    text = words + form(number + change)
    assert value("math", text, plain(number)) == 0
    if "boxed" not in text:
        assert measured("number", text, plain(number)) == 0


@given(st.text(alphabet="0123456789.,-%$/ eE", min_size=1, max_size=12), NUMBERS)
def test_a_digit_put_in_or_left_out_is_wrong(noise, number):
    text = plain(number)
    for place in range(len(text)):
        for changed in (text[:place] + "7" + text[place:], text[:place] + text[place + 1 :]):
            try:
                other = Decimal(changed)
            except ArithmeticError:
                continue
            assert value("math", changed, text) == float(other == number)


# JSON

LEAVES = st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(alphabet='abé "\\{}[]`', max_size=5)
OBJECTS = st.dictionaries(
    st.sampled_from("abcd"),
    st.recursive(
        LEAVES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        max_leaves=6,
    ),
    min_size=1,
    max_size=4,
)


@given(
    OBJECTS,
    st.sampled_from(["{}", "```json\n{}\n```", "Here you are: {} Good luck!", " \n{}\n"]),
    st.sampled_from([None, 2]),
)
def test_json_in_another_form_is_right(gold, around, indent):
    backwards = dict(reversed(gold.items()))
    text = around.replace("{}", json.dumps(backwards, indent=indent, ensure_ascii=indent is None))
    assert measured("json_fields", text, json.dumps(gold)) == 1
    assert measured("json_fields", text, json.dumps(gold), strict=True) == 1
    assert measured("json_valid", text, "") == 1
    assert value("json_schema", text, "", schema={"const": gold}) == 1


@given(OBJECTS, st.data())
def test_json_with_another_value_is_wrong(gold, data):
    key = data.draw(st.sampled_from(sorted(gold)))
    kind = data.draw(st.sampled_from(["changed", "missing", "more", "nested"]))
    other = dict(gold)
    if kind == "changed":
        other[key] = data.draw(LEAVES.filter(lambda one: json.dumps(one) != json.dumps(gold[key])))
        assume(
            not (isinstance(gold[key], str) and isinstance(other[key], str) and gold[key].strip() == other[key].strip())
        )
    elif kind == "missing":
        del other[key]
    elif kind == "more":
        other["z"] = 1
    else:
        other = {"a": gold}
    text = json.dumps(other)
    assert value("json_schema", text, "", schema={"const": gold}) == 0
    assert measured("json_fields", text, json.dumps(gold), strict=True) == 0
    assert measured("json_fields", text, json.dumps(gold)) < 1


# Choices

CHOICE = st.text(alphabet="abcdefg hi", min_size=2, max_size=9).map(str.strip).filter(lambda one: len(one) > 1)
CHOICES = st.lists(CHOICE, min_size=2, max_size=5, unique=True)


@given(CHOICES, st.data())
def test_a_choice_by_letter_or_text_is_right_and_any_other_wrong(choices, data):
    assume(len({" ".join(one.split()) for one in choices}) == len(choices))
    right, taken = (data.draw(st.integers(0, len(choices) - 1)) for _ in range(2))
    letter = "ABCDE"[taken]
    for text in (
        f"({letter})",
        f"The answer is {letter}.",
        f"answer: {letter}",
        choices[taken],
        f" {choices[taken].upper()}. ",
    ):
        assert value("choice", text, choices[right], choices=choices) == float(right == taken), text


# Exact answers


@given(st.text(st.characters(), max_size=20), st.text(st.characters(), max_size=20))
def test_exact_forgives_case_and_space_and_nothing_else(gold, text):
    assume(gold.strip())
    spaced = f"  {gold.upper().lower()}\n"
    same = " ".join(text.split()).casefold() == " ".join(gold.split()).casefold()
    assert value("exact", text, gold) == measured("exact", text, gold) == float(same)
    if spaced.strip().casefold() == gold.strip().casefold():
        assert value("exact", spaced, gold) == 1
    assert value("exact", gold + "x", gold) == 0


# Whatever is written

SIGNS = [*"19.,-−+eE/%$ \n{}[]\"\\:()ABa'٣", "\u00a0", "\ud800"]
MARKS = ["is", "answer", "####", "\\boxed{", "\\frac{", "\\text{", "```", "```json\n", "```python\n", "1/2"]
ALPHABET = st.sampled_from([*SIGNS, *MARKS])
JUDGES = {
    "math": lambda text, gold: value("math", text, gold),
    "choice": lambda text, gold: value("choice", text, gold, choices=["A", gold, "a b"]),
    "exact": lambda text, gold: value("exact", text, gold),
    "json_schema": lambda text, gold: value("json_schema", text, gold, schema={"required": ["a"]}),
    "format": lambda text, gold: value("format", text, gold, options={"pattern": r"[^{]*\{[^}]*\}"}),
    "json_fields": lambda text, gold: measured("json_fields", text, '{"a": 1}'),
    "json_valid": lambda text, gold: measured("json_valid", text, gold),
    "number": lambda text, gold: measured("number", text, "7"),
    "token_f1": lambda text, gold: measured("token_f1", text, gold),
    "chrf": lambda text, gold: measured("chrf", text, gold),
    "metric exact": lambda text, gold: measured("exact", text, gold),
}


@given(
    st.lists(ALPHABET, max_size=30).map("".join) | st.text(st.characters(), max_size=60), st.lists(ALPHABET, max_size=8)
)
def test_any_answer_has_a_value(text, gold):
    for name, judge in JUDGES.items():
        found = judge(text, "".join(gold))
        assert found is None or 0 <= found <= 1, name


@settings(max_examples=settings.default.max_examples // 6)
@given(st.lists(ALPHABET, min_size=1, max_size=4).map("".join), st.lists(ALPHABET, max_size=2).map("".join))
def test_no_answer_of_repeated_pieces_takes_long(piece, end):
    text = piece * 20_000 + end
    for name, judge in JUDGES.items():
        try:
            within(MOMENT, lambda judge=judge: judge(text, "42"))
        except TooSlow:
            raise AssertionError(f"{name}: {piece!r} and {end!r} take more than {MOMENT} s") from None
