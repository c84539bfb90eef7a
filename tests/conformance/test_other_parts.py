"""Schedules, optimisers, data sets, metrics, samplers: planted faults are caught by the check meant for them."""

import re
from itertools import count
from typing import ClassVar

import numpy
import pytest
import torch

from luthier.conformance.base import Failed
from luthier.conformance.matrix import checks_of, run_checks
from luthier.datasets.base import Dataset, as_record
from luthier.datasets.pictures.base import ArrayDataset
from luthier.datasets.strings import Strings
from luthier.engine.optimizers.base import Optimizer
from luthier.engine.schedules.base import Schedule
from luthier.evals.base import Metric
from luthier.evals.metrics.choice import Choice
from luthier.evals.metrics.exact import Exact
from luthier.evals.metrics.perplexity import Perplexity
from luthier.evals.metrics.preference_accuracy import PreferenceAccuracy
from luthier.sampling.samplers.base import SamplerPart
from luthier.sampling.samplers.http import Http
from luthier.types import Row, Stream, Trajectory
from support.served import said, serving

CALLS = count()


class AboveOne(Schedule):
    def factor(self, progress):
        return 1 + progress


class Infinite(Schedule):
    def factor(self, progress):
        return float("inf") if progress == 1 else progress


class AlwaysZero(Schedule):
    def factor(self, progress):
        return 0.0


class Counts(Schedule):
    def factor(self, progress):
        return 1 / (1 + next(CALLS))


class UnreadFloor(Schedule):
    SETTINGS: ClassVar = ({}, {"floor": 0.5})
    floor: float = 0.0

    def factor(self, progress):
        return progress


class Descent(Optimizer):
    lr: float = 0.1
    clip: float | None = 1.0

    def make(self, parameters):
        return torch.optim.SGD(parameters, lr=self.lr)


class WithoutClip(Optimizer):
    lr: float = 0.1

    def make(self, parameters):
        return torch.optim.SGD(parameters, lr=self.lr)


class OtherRate(Descent):
    def make(self, parameters):
        return torch.optim.SGD(parameters, lr=2 * self.lr)


class MatricesOnly(Descent):
    def make(self, parameters):
        return torch.optim.SGD([tensor for tensor in parameters if tensor.dim() > 1], lr=self.lr)


class Restless(torch.optim.SGD):
    """Takes a step whatever the rate is."""

    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            for tensor in group["params"]:
                tensor.data.mul_(0.99)


class Forgets(torch.optim.SGD):
    """Its rate falls with a number that no state holds."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        self.steps = 0

    def step(self, closure=None):
        self.steps += 1
        for group in self.param_groups:
            for tensor in group["params"]:
                tensor.data.sub_(tensor.grad, alpha=group["lr"] / self.steps)


class MovesAtRateZero(Descent):
    def make(self, parameters):
        return Restless(parameters, lr=self.lr)


class Stands(Descent):
    def make(self, parameters):
        optimizer = torch.optim.SGD(parameters, lr=self.lr)
        optimizer.step = lambda closure=None: None
        return optimizer


class LosesState(Descent):
    def make(self, parameters):
        return Forgets(parameters, self.lr)


class UnreadNesterov(Descent):
    SETTINGS: ClassVar = ({}, {"lr": 0.2}, {"clip": 0.01}, {"nesterov": True})
    nesterov: bool = False


class RandomSet(Dataset):
    def records(self):
        return [as_record({"prompt": f"{next(CALLS)}", "completion": "a"}, "made up")]


class RepeatedRecords(Dataset):
    def records(self):
        return [as_record({"prompt": "a", "completion": "b"}, f"made up:{number}") for number in range(2)]


class EmptyAnswers(Dataset):
    def records(self):
        return [as_record({"prompt": "a", "completion": " "}, "made up")]


class NoShape(Dataset):
    def records(self):
        return [as_record({"question": "a", "answer": "b"}, "made up")]


class NoRecord(Dataset):
    def records(self):
        return []


class OneSplit(Strings):
    def records(self):
        return Strings(count=self.count).records()


class UnreadSeed(Dataset):
    SETTINGS: ClassVar = ({}, {"seed": 1})
    seed: int = 0

    def records(self):
        return [as_record({"prompt": "a", "completion": "b"}, "made up")]


def pictures(values, name="picture-{}"):
    return [
        Row(name.format(number), numpy.zeros(0, "int32"), {"image": Stream(value, "row")})
        for number, value in enumerate(values)
    ]


class NotFinitePictures(ArrayDataset):
    def rows(self):
        return pictures([numpy.array([1.0, numpy.nan])])


class RepeatedPictures(ArrayDataset):
    def rows(self):
        return pictures([numpy.zeros(2), numpy.ones(2)], name="picture")


class Percent(Metric):
    def score(self, prediction, record, reference):
        return 100.0 * (prediction == reference)


class Fragile(Metric):
    def score(self, prediction, record, reference):
        return 1.0 if prediction == reference else 0.5 / ord(prediction[0])


class Severe(Metric):
    """The reference itself is not right."""

    def score(self, prediction, record, reference):
        return 0.5 * (prediction == reference)


class Marks(Metric):
    def score(self, prediction, record, reference):
        record.fields["seen"] = True
        return float(prediction == reference)


class RandomMetric(Metric):
    def score(self, prediction, record, reference):
        return float(prediction == reference) / (1 + next(CALLS) % 2)


class BoastsOf(Exact):
    EXAMPLES: ClassVar = (({}, {"text": "a", "gold": "b"}, 1.0),)


class UnreadSpace(Exact):
    SETTINGS: ClassVar = ({}, {"ignore_case": False}, {"ignore_space": False})

    def _normal(self, text):
        return text.strip().casefold() if self.ignore_case else text.strip()


class First(Choice):
    def pick(self, logprobs, choices, tokens):
        return 0


class NotAPlace(Choice):
    def pick(self, logprobs, choices, tokens):
        return choices[0]


class Backwards(PreferenceAccuracy):
    def of_pair(self, chosen, rejected):
        return 1.0 - super().of_pair(chosen, rejected)


class Constant(Perplexity):
    def of_logprobs(self, total, targets):
        return 1.0


class Scripted(SamplerPart):
    """Answers with tokens that its `tokens` decides."""

    def tokens(self, request, number):
        return [20 + int(request.record[-1])]

    def make(self, asking):
        def sample(requests, sampling, progress=None):
            return [Trajectory(self.tokens(request, n), "stop", request.record) for n, request in enumerate(requests)]

        return sample


class Unordered(Scripted):
    def make(self, asking):
        sample = super().make(asking)
        return lambda requests, sampling, progress=None: sample(requests[::-1], sampling)


class DropsOne(Scripted):
    def make(self, asking):
        sample = super().make(asking)
        return lambda requests, sampling, progress=None: sample(requests, sampling)[1:]


class Unknown(Scripted):
    def tokens(self, request, number):
        return [10_000_000]


class Endless(Scripted):
    def tokens(self, request, number):
        return [20] * 500


class ByPlace(Scripted):
    def tokens(self, request, number):
        return [20 + number]


class Own(Scripted):
    OWN: ClassVar[bool] = True


class RandomDraws(Own):
    def tokens(self, request, number):
        return [20 + next(CALLS) % 50]


class Unforced(Own):
    def tokens(self, request, number):
        return [20 + request.seed % 50]


@pytest.mark.parametrize(
    "slot, part, check, words",
    [
        ("schedule", AboveOne, "a finite factor", "it lies from 0 to 1"),
        ("schedule", Infinite, "a finite factor", "no finite number"),
        ("schedule", AlwaysZero, "a finite factor", "0 at every moment"),
        ("schedule", Counts, "a function of progress", "a counter, or a random call"),
        ("schedule", UnreadFloor, "every option", "`floor`"),
        ("optimizer", WithoutClip, "options `lr`", "there is no option `clip`"),
        ("optimizer", OtherRate, "options `lr`", "`lr` is not the learning rate"),
        ("optimizer", MatricesOnly, "options `lr`", "holds 2 of 3 parameters"),
        ("optimizer", Stands, "moves every", "does not move"),
        ("optimizer", MovesAtRateZero, "moves every", "moves although the learning rate is 0"),
        ("optimizer", LosesState, "its state", "state outside"),
        ("optimizer", LosesState, "exact resume", "after a resume"),
        ("optimizer", UnreadNesterov, "every option", "`nesterov`"),
        ("dataset", EmptyAnswers, "every record can", "no answer to learn from"),
        ("dataset", NoShape, "every record can", "no known shape"),
        ("dataset", NoRecord, "every record can", "there is no record"),
        ("dataset", NotFinitePictures, "every record can", "is not finite"),
        ("dataset", RepeatedRecords, "every record once", "number 2 of 2"),
        ("dataset", RepeatedPictures, "every record once", "number 2 of 2"),
        ("dataset", RandomSet, "deterministic", "a random call"),
        ("dataset", OneSplit, "splits", "are in both splits"),
        ("dataset", UnreadSeed, "every option", "`seed`"),
        ("metric", Percent, "scores from 0", "a score lies from 0 to 1"),
        ("metric", Severe, "scores from 0", "less than RIGHT"),
        ("metric", Fragile, "a score for any", "makes it fail: IndexError"),
        ("metric", Marks, "deterministic", "copy them"),
        ("metric", RandomMetric, "deterministic", "a random call"),
        ("metric", BoastsOf, "its examples", "is worth 1.0, and it is worth 0.0"),
        ("metric", UnreadSpace, "every option", "`ignore_space`"),
        ("metric", First, "picks the same", "picks another one"),
        ("metric", NotAPlace, "picks the same", "no index of 3 choices"),
        ("metric", Backwards, "pairs:", "where the rejected is"),
        ("metric", Constant, "finite values", "both worth 1"),
        ("sampler", Unordered, "one answer per", "keep the order"),
        ("sampler", DropsOne, "one answer per", "7 answers to 8 requests"),
        ("sampler", Unknown, "one answer per", "token ids below"),
        ("sampler", Endless, "one answer per", "`max_new_tokens` is 12"),
        ("sampler", ByPlace, "an answer does not", "depend on its neighbours"),
        ("sampler", RandomDraws, "a request's seed", "a random call"),
        ("sampler", Own, "a request's seed", "is the seed read?"),
        ("sampler", Unforced, "begins with", "the tokens that were forced"),
    ],
)
def test_planted_fault_is_caught(slot, part, check, words, monkeypatch):
    monkeypatch.setattr("luthier.conformance.texts.HOSTILE", ("", "9", "a" * 50))
    run_check = next(function for name, function in checks_of(slot, part) if name.startswith(check))
    with pytest.raises(Failed, match=re.escape(words)):
        run_check()


def test_an_honest_neighbour_of_the_faults_passes():
    class Momentum(Descent):
        SETTINGS: ClassVar = ({}, {"lr": 0.2}, {"clip": 0.01})

    assert [outcome for outcome in run_checks("optimizer", Momentum) if not outcome.passed] == []


class Served(Http):
    SETTINGS: ClassVar = ({"url": "http://127.0.0.1:9/v1", "model": "any"},)


def test_a_sampler_behind_a_server_is_checked_where_one_answers():
    assert [outcome.check for outcome in run_checks("sampler", Served)] == ["can be reached, or says so"]
    with serving(lambda body, number: said(body["messages"][-1]["content"][:4])) as (url, asked):
        part = type("Served", (Http,), {"SETTINGS": ({"url": url, "model": "any"},), "__module__": __name__})
        outcomes = list(run_checks("sampler", part))
    assert [outcome.message for outcome in outcomes] == [""] * 3 and asked
