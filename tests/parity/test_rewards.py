"""The two rewards of lengths of two_stage against its authors' code, which counts characters."""

import pytest

from luthier.parts import build
from luthier.rewards.base import Answer, Reward
from luthier.types import Record
from parity.golden import golden

CASE = golden("two_stage_rewards")


class Told(Reward):
    """Right where the record says so."""

    def score(self, answer):
        return float(answer.record.fields["right"])


def answers():
    return [
        Answer("x" * length, Record("r", "prompt_completion", {"right": right}, "made up"), "x", tokens=1)
        for length, right in zip(CASE["lengths"], CASE["right"], strict=True)
    ]


@pytest.mark.parametrize(
    "kind, options",
    [
        (
            "cosine_length",
            {"limit": CASE["limit"], "right_range": CASE["right_range"], "wrong_range": CASE["wrong_range"]},
        ),
        ("length", {}),
    ],
)
def test_lengths(kind, options):
    reward = build("reward", {"kind": kind, "unit": "characters", "right": Told(), **options})
    assert reward.score_group(answers()) == pytest.approx(CASE[kind], abs=1e-15)
