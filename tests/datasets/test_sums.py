import re

import pytest

from luthier.datasets.sums import STORIES, Sums


@pytest.mark.parametrize("style", ["plain", "words", "both"])
def test_every_step_is_right_and_the_last_is_the_result(style):
    for record in Sums(count=200, style=style).records():
        *steps, last = record.fields["completion"].split("\n")
        assert steps
        for step in steps:
            left, right = step.split("=")
            assert re.fullmatch(r"\d+[-+*/]\d+", left)
            assert eval(left) == int(right) >= 0
        assert last == f"#### {steps[-1].split('=')[1]}"


def test_plain_chains_are_computed_from_their_question():
    for record in Sums(count=100, style="plain", terms=4).records():
        result = int(record.fields["completion"].rsplit(" ", 1)[1])
        assert eval(record.fields["prompt"].rstrip("=")) == result


def test_options_bound_the_numbers():
    records = Sums(count=60, style="plain", terms=2, largest=9).records()
    numbers = {int(number) for record in records for number in re.findall(r"\d+", record.fields["prompt"])}
    assert numbers <= set(range(1, 10))


def test_every_story_comes_up():
    openings = {record.fields["prompt"].split(" ")[1] for record in Sums(count=200).records()}
    assert openings == {"has", "fills", "brings", "saves"}
    assert len(STORIES) == 5


def test_both_styles_mix():
    kinds = {record.fields["prompt"][0].isdigit() for record in Sums(count=30, style="both").records()}
    assert kinds == {True, False}
