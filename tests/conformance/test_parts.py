"""Every objective and tuner of the package passes the matrix by existing; planted faults are caught."""

import re
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from luthier import parts
from luthier.conformance.base import Failed
from luthier.conformance.matrix import check_part, checked_slots, checks_of, run_checks
from luthier.errors import LuthierError
from luthier.models.kernels.head import target_logprob
from luthier.objectives.base import Objective, TokenObjective
from luthier.tuners.full import Full
from luthier.types import Term
from support.changed import tried_now


def whole_matrix():
    """Every part; those that neither changed nor have their turn at this commit are slow: `make test-full` has all."""
    for slot in checked_slots():
        for entry in parts.catalogue(slot):
            marks = () if tried_now(entry) else (pytest.mark.slow,)
            yield pytest.param(slot, entry.name, id=entry.name, marks=marks)


@pytest.mark.parametrize("slot, name", whole_matrix())
def test_part(slot, name):
    failed = [outcome for outcome in run_checks(slot, parts.load(slot, name)) if not outcome.passed]
    assert not failed


class ChunkMean(TokenObjective):
    """A mean over the chunk."""

    def token_loss(self, view):
        weight = view.logprob.detach().exp()
        return -view.logprob * weight / weight.mean()


class MicroMean(Objective):
    """Divides by the micro-batch's own count."""

    def terms(self, policy, batch, update):
        hidden = policy.hidden(batch)
        return [Term(policy.head.sum(hidden, lambda s, z: z[:, 0]) / len(hidden), None)]


class LooksAhead(Objective):
    """Takes the hidden state behind the target, which in a packed row may be another record's."""

    def terms(self, policy, batch, update):
        hidden = policy.input_of_head({"input_ids": batch.ids}, batch.attention_mask, batch.position_of)
        rows, columns = batch.targets()
        behind = torch.clamp(columns + 1, max=hidden.shape[1] - 1)
        return [Term(policy.head.sum(hidden[rows, behind], lambda s, z: z[:, 0]), "targets")]


class MaskMoved(TokenObjective):
    """Its mask is off by some places."""

    PLACES: ClassVar[int] = 1

    def terms(self, policy, batch, update):
        weights = batch.streams["weights"]
        values = torch.roll(weights.values, self.PLACES, 1) * (batch.example_of >= 0)
        moved = replace(batch, streams={**batch.streams, "weights": replace(weights, values=values)})
        return super().terms(policy, moved, update)

    def token_loss(self, view):
        return -view.logprob


class MaskTooEarly(MaskMoved):
    PLACES: ClassVar[int] = -1


class EntropyMoved(MaskMoved):
    """A loss of distributions whose mask is off by one."""

    READS_TARGETS: ClassVar[bool] = False

    def token_loss(self, view):
        return (view.logits.softmax(-1) * view.logits.log_softmax(-1)).sum(-1)


class EntropyTooEarly(EntropyMoved):
    PLACES: ClassVar[int] = -1


class EntropyUnsaid(EntropyMoved):
    """Its mask is right, and it does not say what it reads."""

    READS_TARGETS: ClassVar[bool] = True
    PLACES: ClassVar[int] = 0


class Contaminated(TokenObjective):
    """Lets packed records see each other: positions run on where they should begin again."""

    def terms(self, policy, batch, update):
        onward = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
        positions = onward if batch.attention_mask is None else batch.position_of
        rows, columns = batch.targets()
        hidden = policy.input_of_head({"input_ids": batch.ids}, batch.attention_mask, positions)[rows, columns - 1]
        targets = batch.ids[rows, columns]
        return [Term(policy.head.sum(hidden, lambda s, z: -target_logprob(z, targets[s])), "targets")]


class ForgottenDetach(TokenObjective):
    """dft whose weight carries gradient."""

    DETACHED = ("weight",)

    def token_loss(self, view):
        return -view.logprob.exp() * view.logprob


class SecretDetach(TokenObjective):
    """Holds a weight and does not say so."""

    def token_loss(self, view):
        return -view.logprob.detach().exp() * view.logprob


class Average:
    """What LeavesOut remembers: both numbers matter, and one of them is saved."""

    def __init__(self):
        self.count, self.total = torch.zeros(1), torch.zeros(1)

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class LeavesOut(TokenObjective):
    """Has a buffer that its checkpoint does not hold."""

    def start(self, policy):
        return Average()

    def token_loss(self, view):
        return -view.logprob * (1 + view.update.state_of(self).total)

    def after_step(self, policy, update):
        state = update.state_of(self)
        state.count, state.total = state.count + 1, state.total + update.progress


class Unread(TokenObjective):
    SETTINGS = ({}, {"strength": 3.0})
    strength: float = 1.0

    def token_loss(self, view):
        return -view.logprob


class GlobalRandom(TokenObjective):
    def token_loss(self, view):
        return -view.logprob * torch.rand(1)


class Forgetful(TokenObjective):
    """Keeps a counter that no checkpoint holds."""

    def start(self, policy):
        return None

    def token_loss(self, view):
        SEEN["updates"] = SEEN.get("updates", 0) + 1
        return -view.logprob * (1 + SEEN["updates"])


class LocalSum(TokenObjective):
    """Looks at the whole update, but of this rank only."""

    def prepare(self, policy, update):
        update.set_prepared(self, sum(float(batch.weights.sum()) for batch in update.batches))

    def token_loss(self, view):
        return -view.logprob * view.update.prepared_by(self)


SEEN: dict[str, int] = {}


class Overflow(TokenObjective):
    def token_loss(self, view):
        return -view.logprob * torch.exp(view.logits[:, 0] * 1e6)


class LosesWeights(Full):
    def save(self, model, masters, folder):
        model.model.norm.weight.data += 1
        super().save(model, masters, folder)
        model.model.norm.weight.data -= 1


SPLIT = "gradient: splits"


@pytest.mark.parametrize(
    "slot, part, check, words",
    [
        ("objective", ChunkMean, SPLIT, "the gradient differs"),
        ("objective", MicroMean, SPLIT, "the gradient differs"),
        ("objective", LooksAhead, SPLIT, "the gradient differs"),
        ("objective", MaskMoved, "gradient: of every target", "behind the last target"),
        ("objective", MaskTooEarly, "gradient: of every target", "does not depend on the last target"),
        ("objective", EntropyMoved, "gradient: of every target", "behind the token before the last target"),
        ("objective", EntropyTooEarly, "gradient: of every target", "not depend on the token before the last target"),
        ("objective", EntropyUnsaid, "gradient: of every target", "declares READS_TARGETS = False"),
        ("objective", Contaminated, SPLIT, "with packed the gradient differs"),
        ("objective", LocalSum, "gradient: two ranks", "on two ranks the gradient differs"),
        ("objective", ForgottenDetach, "gradient: derivative", "is a `detach` forgotten?"),
        ("objective", SecretDetach, "gradient: derivative", "is something detached?"),
        ("objective", Unread, "every option", "`strength` give different results"),
        ("objective", GlobalRandom, SPLIT, "the gradient differs"),
        ("objective", Forgetful, "deterministic", "two runs with one seed differ"),
        ("objective", LeavesOut, "exact resume", "after a resume"),
        ("objective", Overflow, "bfloat16", "not a finite number"),
        ("tuner", LosesWeights, "saved, loaded", "logits differ"),
    ],
)
def test_planted_fault_is_caught(slot, part, check, words):
    for name, run_check in checks_of(slot, part):
        if name.startswith(check):
            with pytest.raises((Failed, LuthierError), match=re.escape(words)):
                run_check()
            return
    raise AssertionError(f"no check is called {check}")


def test_a_file_of_the_users(tmp_path, capsys):
    from rich.console import Console

    file = tmp_path / "soft_focus.py"
    file.write_text(
        '"""SoftFocus."""\n'
        "from luthier import TokenObjective\n"
        "class SoftFocus(TokenObjective):\n"
        '    """Lets go of tokens already known."""\n'
        '    SETTINGS = ({}, {"power": 1.0})\n'
        '    DETACHED = ("weight",)\n'
        "    power: float = 2.0\n"
        "    def token_loss(self, view):\n"
        "        return -((1 - view.logprob.detach().exp()) ** self.power) * view.logprob\n"
    )
    check_part(file, Console(width=120))
    assert "SoftFocus passes the matrix" in capsys.readouterr().out
