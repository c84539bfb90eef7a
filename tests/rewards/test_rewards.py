import math
import time
from itertools import pairwise

import numpy
import pytest
import torch

from luthier.errors import RecipeError
from luthier.parts import build
from luthier.rewards._guard import run_python, within
from luthier.rewards._schema import faults, unknown_keywords
from luthier.rewards.base import Answer, Judged, Reward, build_rewards
from luthier.types import Record
from luthier.vision.digits import digit_rows


def answer(text="", gold="", tokens=0, **fields):
    return Answer(text, Record("r", "prompt_completion", fields, "data.jsonl:3"), gold, tokens=tokens)


def score(reward, *args, **fields):
    found = reward.score(answer(*args, **fields))
    return found.value if isinstance(found, Judged) else found


@pytest.mark.parametrize(
    ("text", "gold", "value"),
    [
        ("so it is 42.", "#### 42", 1),
        ("first 41, then 42", "42", 1),
        ("42, not 43", "42", 0),
        ("1,234.50 dollars", "$1234.5", 1),
        (r"thus \boxed{\frac{3}{4}} of 8", "0.75", 1),
        (r"\boxed{\dfrac{-1}{2}}", "-1/2", 1),
        (r"\boxed{7} and then \boxed{8}", r"\boxed{8}", 1),
        (r"\boxed{7} and then \boxed{8}", "7", 0),
        ("50%", "0.5", 1),
        ("50 percent", "50", 1),
        (r"\boxed{12.5\%}", "1/8", 1),
        ("0.5", "50%", 1),
        ("the 50% of 80 are 40", "40", 1),
        ("the 50% of 80 are 40", "0.4", 0),
        ("#### 50%", "0.5", 1),
        (r"\boxed{\sqrt{2}}", "2", 0),
        (r"\boxed{2\sqrt{3}}", r"\boxed{2 \sqrt{3}}", 1),
        (r"\boxed{x+1}", r"\boxed{x + 1}", 1),
        (r"\boxed{(1, 2)}", r"\boxed{\left(1,2\right)}", 1),
        (r"\boxed{5 \text{ cm}}", "5", 1),
        (r"\boxed{1,000}", "1000", 1),
        ("no idea", "3", 0),
        ("3", "", None),
        ("3", "no number", None),
        (r"\boxed{3", "3", 1),
        ("1/3", "2/6", 1),
    ],
)
def test_math(text, gold, value):
    assert score(build("reward", "math"), text, gold) == value


def test_math_with_tolerance():
    assert score(build("reward", "math"), "3.14", "3.1416") == 0
    assert score(build("reward", {"kind": "math", "tolerance": 0.01}), "3.14", "3.1416") == 1
    assert score(build("reward", {"kind": "math", "tolerance": 0.01}), "-3.14", "3.1416") == 0


def test_exact():
    assert score(build("reward", "exact"), " Abc  d", "abc d") == 1
    assert score(build("reward", {"kind": "exact", "ignore_case": False}), "Abc", "abc") == 0
    assert score(build("reward", {"kind": "exact", "ignore_space": False}), " abc", "abc") == 0
    assert score(build("reward", "exact"), "abc", "") is None


@pytest.mark.parametrize(
    ("text", "gold", "value"),
    [
        ("red", "Red", 1),
        ("The answer is (B).", "green", 1),
        ("A or C? It is C", "B", 0),
        ("I think it is light green", "light green", 1),
        ("I think it is light green", "green", 0),
        ("not red but green", "B", 1),
        ("A pity, but I like green", "red", 0),
        ("A nice question. I take green", "green", 1),
        ("**B**", "green", 1),
        ("B because of A's colour", "green", 1),
        ("Answer: B", "green", 1),
        ("red", "violet", None),
    ],
)
def test_choice(text, gold, value):
    assert score(build("reward", "choice"), text, gold, choices=["red", "green", "light green"]) == value
    own = build("reward", {"kind": "choice", "column": "options"})
    assert score(own, text, gold, options=["red", "green", "light green"]) == value
    assert score(own, text, gold) is None


@pytest.mark.parametrize(
    ("text", "gold", "value"),
    [
        ("b", "B", 1),
        ("(b)", "B", 1),
        ("b.", "B", 1),
        ("answer b", "B", 1),
        ("the answer is (b).", "green", 1),
        ("The answer is a colour: green", "green", 1),
        ("The answer is A. Option B is wrong.", "A", 1),
        ("The answer is A. Option B is wrong.", "B", 0),
        ("Answer: B\n\nExplanation: In C. elegans it is so.", "B", 1),
        ("B) green", "B", 1),
        ("green", "1", 1),
        ("B", "1", 1),
        ("1", "1", 1),
        ("2", "1", 0),
        ("red", "(b)", 0),
        ("green", "b.", 1),
        ("green", "3", 0),
        ("green", "4", None),
        ("green", "-1", None),
    ],
)
def test_choice_by_letter_or_index(text, gold, value):
    choices = ["red", "green", "light green"]
    assert score(build("reward", "choice"), text, gold, choices=choices) == value
    published = {"text": choices, "label": ["A", "B", "C"]}
    assert score(build("reward", "choice"), text, gold, choices=published) == value


def test_choices_that_are_numbers_are_texts_unless_the_recipe_says_indices():
    choices = ["3", "2", "0", "1"]
    auto, index = build("reward", "choice"), build("reward", {"kind": "choice", "answers": "index"})
    judged = auto.score(answer("2", "2", choices=choices))
    assert (judged.value, judged.parts) == (1.0, {"ambiguous": 1.0})
    assert auto.score(answer("2", "B", choices=choices)).parts == {}
    assert score(index, "C", "2", choices=choices) == 1
    assert score(index, "2", "1", choices=choices) == 0
    assert score(index, "2", "2", choices=choices) == 1
    assert score(index, "The answer is B.", "1", choices=choices) == 1


def test_the_format_must_match_the_whole_answer_across_lines():
    """The oracle of the two-stage recipe: a box before the closing tag."""
    reward = build("reward", {"kind": "format", "pattern": r".*boxed\{.*?\}.*</think>.*"})
    texts = ("a boxed{3}\n b</think> c", "a</think> boxed{3}", "boxed{3}")
    assert [score(reward, text) for text in texts] == [1, 0, 0]
    assert score(build("reward", {"kind": "format", "pattern": "a|b"}), "ab") == 0
    with pytest.raises(RecipeError, match="not a regular expression"):
        build("reward", {"kind": "format", "pattern": "("})


def test_overlong_penalty_of_dapo():
    reward = build("reward", {"kind": "overlong", "limit": 8192, "buffer": 4096})
    assert [score(reward, tokens=n) for n in (1, 4096, 5120, 6144, 8192, 9000)] == [0, 0, -0.25, -0.5, -1, -1]
    with pytest.raises(RecipeError, match="longer than the limit"):
        build("reward", {"kind": "overlong", "limit": 10, "buffer": 11})


def group(lengths, right, format_ok=None):
    return [
        answer("1" if good else "2", "1", tokens=length, format=ok)
        for length, good, ok in zip(lengths, right, format_ok or [1] * len(right), strict=True)
    ]


def test_length_within_a_group():
    reward = build("reward", "length")
    assert reward.score_group(group((100, 200, 300, 500), (1, 0, 1, 0))) == [0.5, 0, 0, -0.5]
    assert reward.score_group(group((7, 7, 7), (1, 0, 1))) == [0, 0, 0]
    values = reward.score_group(group((10, 20, 30, 40), (1, 1, 1, 1)))
    assert all(one > other for one, other in pairwise(values))
    assert reward.score_group([answer("1", "", tokens=5), answer("1", "1", tokens=9)]) == [None, -0.5]
    characters = build("reward", {"kind": "length", "unit": "characters", "right": "exact"})
    assert characters.score_group([answer("ab", "ab"), answer("abcd", "ab")]) == [0.5, -0.5]


def test_cosine_over_the_length():
    reward = build("reward", {"kind": "cosine_length", "limit": 30000})
    for right, sign in ((1, 1), (0, -1)):
        for length, value in ((0, 1), (7500, 0.868198), (15000, 0.55), (22500, 0.231802), (30000, 0.1), (60000, 0.1)):
            assert reward.score_group(group([length], [right])) == [pytest.approx(sign * value, abs=1e-6)]
    plain = build("reward", {"kind": "cosine_length", "limit": 9, "right_range": (1, 1), "wrong_range": (0, 0)})
    assert plain.score_group(group((3, 5, 8), (1, 0, 1))) == [1, 0, 1]
    assert reward.score_group([answer("1", "", tokens=5)]) == [None]
    characters = build("reward", {"kind": "cosine_length", "limit": 2, "unit": "characters", "right": "exact"})
    assert characters.score_group([answer("abc", "abc")]) == [pytest.approx(0.1)]


class Ticked(Reward):
    def score(self, answer):
        return answer.record.fields["format"]


def test_the_sum_of_the_two_stage_recipe():
    parts = [Ticked(), {"kind": "cosine_length", "limit": 30000}, "length"]
    verdicts = build_rewards(parts)(group((6000, 12000, 6000, 24000), (1, 1, 0, 0), (1, 1, 1, 0)))
    found = [one.value for one in verdicts]
    assert found == [pytest.approx(v, abs=1e-6) for v in (2.414058, 1.855724, 0.085942, -0.685942)]
    mean = sum(found) / 4
    std = math.sqrt(sum((one - mean) ** 2 for one in found) / 3)
    advantages = [(one - mean) / (std + 1e-4) for one in found]
    assert advantages == [pytest.approx(v, abs=1e-6) for v in (1.025997, 0.643233, -0.570034, -1.099196)]


def test_json_schema():
    order = {
        "type": "object",
        "required": ["item", "count"],
        "properties": {"item": {"type": "string", "minLength": 1}, "count": {"$ref": "#/$defs/count"}},
        "additionalProperties": False,
        "$defs": {"count": {"type": "integer", "minimum": 1}},
    }
    reward = build("reward", {"kind": "json_schema", "schema_of_all": order, "valid": 0.25})
    for text, value in (
        ('{"item": "tea", "count": 2}', 1),
        ('Here:\n```json\n{"item": "tea", "count": 2}\n```', 1),
        ('{"item": "tea", "count": 0}', 0.25),
        ('{"item": "tea", "count": 2, "more": 1}', 0.25),
        ('{"item": "tea"}', 0.25),
        ('{"item": "tea", "count": 2', 0),
        ("tea", 0),
    ):
        assert score(reward, text) == value, text
    whole = build("reward", {"kind": "json_schema", "whole": True})
    assert (score(whole, '{"a": 1}'), score(whole, 'Here: {"a": 1}')) == (1, 0)
    own = build("reward", {"kind": "json_schema", "column": "form"})
    assert score(own, '{"a": 1}', form='{"required": ["b"]}') == 0
    assert score(own, '{"a": 1}', form={"required": ["a"]}) == 1
    with pytest.raises(RecipeError, match="`dependentRequired`"):
        build("reward", {"kind": "json_schema", "schema_of_all": {"properties": {"a": {"dependentRequired": {}}}}})
    with pytest.raises(ValueError, match=r"data.jsonl:3.*`kind`"):
        own.score(answer('{"a": 1}', form={"kind": "object"}))


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": ["integer", "null"]}, [1, 2.0, None], [True, 1.5, "1"]),
        ({"type": "number"}, [1, 1.5], [True, "1"]),
        ({"enum": [1, "a", [2]]}, [1.0, "a", [2]], [True, "b", [3]]),
        ({"const": {"a": 1}}, [{"a": 1.0}], [{"a": 2}, {}]),
        ({"pattern": "^a+$"}, ["aa", 3], ["ab"]),
        ({"minLength": 2, "maxLength": 3}, ["ab"], ["a", "abcd"]),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 1}, [0.5, "x"], [0, 1]),
        ({"minimum": 0, "maximum": 1}, [0, 1], [-0.1, 1.1]),
        ({"multipleOf": 0.1}, [0.3, 1], [0.35]),
        ({"items": {"type": "string"}, "minItems": 1, "maxItems": 2}, [["a"]], [[], [1], ["a", "b", "c"]]),
        ({"prefixItems": [{"const": 1}], "items": False}, [[1], []], [[2], [1, 2]]),
        ({"uniqueItems": True}, [[1, True], [1, 2]], [[1, 1.0], [{"a": 1, "b": 2}, {"b": 2, "a": 1}]]),
        ({"contains": {"const": 3}}, [[1, 3]], [[1], []]),
        (
            {"patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": False},
            [{"x1": 1}],
            [{"x": ""}, {"y": 1}],
        ),
        ({"minProperties": 1, "maxProperties": 1}, [{"a": 1}], [{}, {"a": 1, "b": 2}]),
        ({"anyOf": [{"const": 1}, {"const": 2}]}, [1, 2], [3]),
        ({"oneOf": [{"minimum": 1}, {"minimum": 5}]}, [1], [0, 6]),
        ({"allOf": [{"minimum": 1}, {"maximum": 2}]}, [1], [0, 3]),
        ({"not": {"const": 1}}, [2], [1]),
        (
            {"properties": {"next": {"$ref": "#"}}, "required": ["n"]},
            [{"n": 1, "next": {"n": 2}}],
            [{"n": 1, "next": {}}],
        ),
    ],
)  # fmt: skip
def test_every_keyword_of_the_schema(schema, good, bad):
    assert unknown_keywords(schema) == []
    assert [value for value in good if faults(value, schema)] == []
    assert [value for value in bad if not faults(value, schema)] == []


def test_code_runs_against_the_tests_of_the_record():
    reward = build("reward", {"kind": "code", "limit": 10})
    tests = "assert double(2) == 4"
    assert score(reward, "So:\n```python\ndef double(x):\n    return 2 * x\n```\ndone", tests=tests) == 1
    assert score(reward, "def double(x):\n    return x", tests=tests) == 0
    assert score(reward, "def double(x):\n    return 4\nraise SystemExit(0)", tests=tests) == 0
    assert score(reward, "anything") is None
    assert score(build("reward", {"kind": "code", "column": "checks"}), "a = 1", checks="assert a == 1") == 1


def test_programs_are_limited_in_time_and_memory_and_leave_nothing_running():
    started = time.perf_counter()
    found = build("reward", {"kind": "code", "limit": 0.5}).score(answer("while True: pass", tests="1"))
    assert (found.value, found.parts) == (0, {"slow": 1.0})
    assert time.perf_counter() - started < 5
    tests = "assert len(data) == 300_000_000"
    hungry = answer("data = bytes(300_000_000)", tests=tests)
    assert build("reward", {"kind": "code", "megabytes": 100}).score(hungry).value == 0
    assert build("reward", {"kind": "code", "megabytes": 2000}).score(hungry).value == 1
    assert "HOME" not in run_python("import os; print(sorted(os.environ), os.listdir())", 10, 200).output


def test_rewards_are_a_weighted_sum_and_those_of_weight_zero_are_not_evaluated():
    class Never(Reward):
        def score(self, answer):
            raise AssertionError("evaluated")

    rewards = build_rewards([{"kind": "math", "weight": 2}, {"reward": {"kind": "exact"}, "weight": 0.5}, "exact"])
    verdict = rewards([answer("1.0", "1")])[0]
    assert (verdict.value, verdict.parts) == (2.0, {"math": 1.0, "exact": 0.0, "exact_2": 0.0})
    log = []
    rewards = build_rewards([{"reward": Never(), "weight": 0}, "math"], log=log.append)
    assert rewards([answer("1", "1")])[0].value == 1
    assert log == []


def test_a_reward_that_does_not_apply_is_left_out_of_the_sum():
    rewards = build_rewards(["math", {"kind": "format", "pattern": ".*", "weight": 0.5}])
    verdict = rewards([answer("1", "")])[0]
    assert (verdict.value, verdict.parts) == (0.5, {"format": 1.0})
    assert build_rewards("math")([answer("1", "")])[0].value is None


def test_a_reward_passes_values_to_the_next_and_names_its_parts():
    class First(Reward):
        def score(self, answer):
            return Judged(1.0, {"half": 0.5}, {"drawn": answer.text * 2})

    class Second(Reward):
        def score(self, answer):
            return len(answer.passed["drawn"])

    verdict = build_rewards([First(), Second()])([answer("abc")])[0]
    assert verdict.value == 7
    assert {name.split(".")[-1] for name in verdict.parts} >= {"half"}


def test_a_reward_of_the_users_that_raises_or_hangs_is_caught_and_logged(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import re\nfrom luthier.rewards.base import Reward\n\n\nclass Mine(Reward):\n"
        "    def score(self, answer):\n        if answer.text == 'bad':\n            return 1 / 0\n"
        "        if answer.text == 'slow':\n            return re.match('(a+)+$', 'a' * 60 + 'b')\n"
        "        if answer.text == 'nan':\n            return float('nan')\n"
        "        while answer.text == 'swallows':\n            try:\n                sum(range(10**6))\n"
        "            except Exception:\n                pass\n        return 3\n"
    )
    log = []
    rewards = build_rewards([{"kind": "./mine.py", "seconds": 0.3}, "math"], tmp_path, log.append)
    found = rewards([answer(text, "1") for text in ("good", "bad", "slow", "nan", "swallows")])
    assert [one.parts.get("mine") for one in found] == [3, None, None, None, None]
    assert [one.value for one in found] == [3, 0, 0, 0, 0]
    assert [(line["event"], line["reward"], line["record"]) for line in log] == [("reward_failed", "mine", "r")] * 4
    kinds = [line["error"].split(":")[0] for line in log]
    assert kinds == ["ZeroDivisionError", "TooSlow", "ValueError", "TooSlow"]


def test_a_group_reward_that_fails_gives_none_to_the_group():
    class Uneven(Reward):
        def score_group(self, answers):
            return [1.0]

    log = []
    assert [one.value for one in build_rewards([Uneven()], log=log.append)([answer(), answer()])] == [None, None]
    assert "1 values for 2 answers" in log[0]["error"]


def test_mistakes_in_a_list_are_told_in_words():
    with pytest.raises(RecipeError, match="weight other than 0"):
        build_rewards([{"kind": "math", "weight": 0}])
    with pytest.raises(RecipeError, match="is a number; found 'much'"):
        build_rewards([{"kind": "math", "weight": "much"}])
    with pytest.raises(RecipeError, match="neither `score` nor `score_group`"):
        Reward().score(answer())


@pytest.mark.parametrize(
    "text", ["1%" * 50_000, "1 percent " * 20_000, "1" + " " * 100_000 + "x", r"\boxed{" + "1%" * 50_000 + "}"]
)
def test_math_reads_long_rows_of_percent_and_spaces_in_a_moment(text):
    within(2.0, lambda: score(build("reward", "math"), text, "1"))


def test_a_program_with_half_a_character_is_wrong_and_not_a_failure():
    assert score(build("reward", "code"), "x = '\ud800'", tests="assert x") == 0


@pytest.mark.parametrize(
    ("value", "step", "kept"),
    [(0.3, 0.1, True), (10**400, 7, False), (10**400, 5, True), (10**12 + 0.5, 1, False), (1e-7, 1e-8, True)],
)
def test_multiples_are_exact(value, step, kept):
    assert (faults(value, {"type": "number", "multipleOf": step}) == []) == kept
    assert faults(10**400, {"type": "integer"}) == []


def test_an_answer_nested_deeper_than_is_looked_into_keeps_to_no_schema():
    schema = {"additionalProperties": {"$ref": "#"}}
    reward = build("reward", {"kind": "json_schema", "schema_of_all": schema})
    assert [score(reward, '{"a":' * depth + "1" + "}" * depth) for depth in (100, 101, 600)] == [1, 0, 0]


def test_digit_judges_pictures_by_their_label():
    rows = digit_rows(200, seed=5)
    pictures = torch.tensor(numpy.stack([row.streams["image"].values for row in rows]))
    label = torch.tensor([int(row.streams["label"].values) for row in rows])
    judge = build_rewards({"kind": "digit"})
    right, wrong = judge.of_samples(pictures, {"label": label}), judge.of_samples(pictures, {"label": (label + 1) % 10})
    assert right.mean() > 0.9 and wrong.mean() < 0.05 and right.shape == (200,)
    other = build_rewards({"kind": "digit", "seed": 1}).of_samples(pictures, {"label": label})
    assert not torch.equal(other, right)
    both = build_rewards(
        [{"kind": "digit"}, {"kind": "digit", "seed": 1, "weight": 0.5}, {"kind": "digit", "weight": 0}]
    )
    assert torch.allclose(both.of_samples(pictures, {"label": label}), right + 0.5 * other)
    apart = both.by_name(pictures, {"label": label})
    assert list(apart) == ["digit", "digit_2", "digit_3"] and torch.equal(apart["digit_2"], other)
    assert torch.equal(apart["digit_3"], right) and torch.allclose(both.total(apart), right + 0.5 * other)
    with pytest.raises(RecipeError, match=r"judges images of shape \[1, 8, 8\]"):
        judge.of_samples(pictures, {})
    with pytest.raises(RecipeError, match="does not define `score_samples"):
        build_rewards("length").of_samples(pictures, {"label": label})
