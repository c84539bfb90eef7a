"""The matrix of rewards that judge samples finds what is wrong with each of these, and nothing with `digit`."""

from typing import ClassVar

import pytest
import torch

from luthier.conformance.matrix import run_checks
from luthier.errors import RecipeError
from luthier.parts import load
from luthier.rewards.base import Reward


class Ink(Reward):
    MODALITY: ClassVar[str] = "diffusion"
    SETTINGS: ClassVar = ({}, {"most": 0.1})
    most: float = 1.0

    def score_samples(self, samples, condition):
        return samples.flatten(1).mean(1).clamp(min=-self.most)


class NotFinite(Ink):
    def score_samples(self, samples, condition):
        return super().score_samples(samples, condition) / 0


class OneForAll(Ink):
    def score_samples(self, samples, condition):
        return samples.mean()


class Compares(Ink):
    def score_samples(self, samples, condition):
        scores = super().score_samples(samples, condition)
        return scores - scores.mean()


class Scribbles(Ink):
    def score_samples(self, samples, condition):
        scores = super().score_samples(samples, condition)
        samples.mul_(2)
        return scores


class Random(Ink):
    def score_samples(self, samples, condition):
        return super().score_samples(samples, condition) + torch.rand(len(samples))


class Idle(Ink):
    SETTINGS: ClassVar = ({}, {"most": 4.0})


class OfPoints(Ink):
    def score_samples(self, samples, condition):
        raise RecipeError("This reward judges points of the plane.")


def outcomes(part):
    return {outcome.check: outcome for outcome in run_checks("reward", part)}


def test_digit_and_a_sound_one_pass():
    for part in (load("reward", "digit"), Ink):
        by_check = outcomes(part)
        assert len(by_check) == 3 and all(outcome.passed for outcome in by_check.values()), by_check


@pytest.mark.parametrize(
    ("part", "check", "words"),
    [
        (NotFinite, "a number", "finite"),
        (OneForAll, "a number", "one finite number each"),
        (Compares, "the same alone", "alone"),
        (Scribbles, "the same alone", "another reward|changes the samples"),
        (Random, "the same alone", "second time"),
        (Idle, "every option", "most"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_each_fault_is_found(part, check, words):
    import re

    failed = [outcome for name, outcome in outcomes(part).items() if name.startswith(check)]
    assert len(failed) == 1 and not failed[0].passed and re.search(words, failed[0].message), failed


def test_a_reward_of_other_samples_is_not_asked_further():
    by_check = outcomes(OfPoints)
    assert len(by_check) == 1 and all(outcome.passed for outcome in by_check.values())
