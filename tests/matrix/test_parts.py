"""Every objective and tuner of the package passes the matrix by existing; planted faults are caught."""

import pytest
import torch

from luthier import parts
from luthier.objectives.base import Objective, TokenObjective
from luthier.steps.conformance import CHECKS, check_part, run_checks
from luthier.tuners.full import Full
from luthier.types import Term

PARTS = [(slot, entry.name) for slot in CHECKS for entry in parts.catalogue(slot)]


@pytest.mark.parametrize("slot, name", PARTS, ids=[name for _, name in PARTS])
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


class OffByOne(Objective):
    """Takes the hidden state of the target itself; with packing that is another record's neighbour."""

    def terms(self, policy, batch, update):
        hidden = policy._forward(batch)
        rows, columns = batch.targets()
        after = torch.clamp(columns + 1, max=hidden.shape[1] - 1)
        return [Term(policy.head.sum(hidden[rows, after], lambda s, z: z[:, 0]), "targets")]


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
        update.prepared[id(self)] = sum(float(batch.weights.sum()) for batch in update.batches)

    def token_loss(self, view):
        return -view.logprob * view.update.prepared[id(self)]


SEEN: dict[str, int] = {}


class Overflow(TokenObjective):
    def token_loss(self, view):
        return -view.logprob * torch.exp(view.logits[:, 0] * 1e6)


class LosesWeights(Full):
    def save(self, model, masters, folder):
        model.model.norm.weight.data += 1
        super().save(model, masters, folder)
        model.model.norm.weight.data -= 1


@pytest.mark.parametrize(
    "slot, part, check",
    [
        ("objective", ChunkMean, "gradient: splits"),
        ("objective", MicroMean, "gradient: splits"),
        ("objective", OffByOne, "gradient: splits"),
        ("objective", LocalSum, "gradient: two ranks"),
        ("objective", Unread, "every option"),
        ("objective", GlobalRandom, "gradient: splits"),
        ("objective", Forgetful, "deterministic"),
        ("objective", Overflow, "bfloat16"),
        ("tuner", LosesWeights, "saved, loaded"),
    ],
)
def test_planted_fault_is_caught(slot, part, check):
    failed = [outcome for outcome in run_checks(slot, part) if not outcome.passed]
    assert any(outcome.check.startswith(check) for outcome in failed)


def test_a_file_of_the_users(tmp_path, capsys):
    from rich.console import Console

    file = tmp_path / "soft_focus.py"
    file.write_text(
        '"""SoftFocus."""\n'
        "from luthier import TokenObjective\n"
        "class SoftFocus(TokenObjective):\n"
        '    """Lets go of tokens already known."""\n'
        '    SETTINGS = ({}, {"power": 1.0})\n'
        "    power: float = 2.0\n"
        "    def token_loss(self, view):\n"
        "        return -((1 - view.logprob.detach().exp()) ** self.power) * view.logprob\n"
    )
    check_part(file, Console(width=120))
    assert "SoftFocus passes the matrix" in capsys.readouterr().out
