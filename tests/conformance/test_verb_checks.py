"""Verbs with planted faults are caught by the check that is meant for them."""

import re

import pytest

from luthier import parts
from luthier.conformance.base import Failed
from luthier.conformance.matrix import checks_of, run_checks

HEAD = """
from typing import Annotated, Any, ClassVar

import torch
from pydantic import ConfigDict, Field

from luthier.steps.verbs.base import From, Verb

"""
FAULTS = {
    "undescribed": """
class Undescribed(Verb):
    strength: float = 1.0

    def run(self, work, stage, folder):
        pass
""",
    "lenient": """
class Lenient(Verb):
    model_config = ConfigDict(extra="allow")

    def run(self, work, stage, folder):
        pass
""",
    "unset": """
class Unset(Verb):
    strength: Annotated[float, Field(description="Factor of the weights.")]

    def run(self, work, stage, folder):
        pass
""",
    "noisy": """
class Noisy(Verb):
    LEAVES: ClassVar = ("model",)
    from_: From = "newest"

    def run(self, work, stage, folder):
        module = work.free_module(self.from_)
        draw = torch.Generator()
        draw.seed()
        for weight in module.parameters():
            weight.data += 0.01 * torch.randn(weight.shape, generator=draw).to(weight.dtype)
        work.leave_module(stage, module)
        work.note(stage, folder, {})
""",
    "keeping": """
class Keeping(Verb):
    LEAVES: ClassVar = ("model",)

    def run(self, work, stage, folder):
        work.note(stage, folder, {})
""",
    "appending": """
class Appending(Verb):
    def run(self, work, stage, folder):
        with (folder / "log.txt").open("a") as file:
            file.write("once more\\n")
        work.note(stage, folder, {"lines": len((folder / "log.txt").read_text().splitlines())})
""",
    "refusing": """
class Refusing(Verb):
    def run(self, work, stage, folder):
        raise ValueError("not here")
""",
}


@pytest.fixture
def verb(tmp_path):
    """Gives the class of one of FAULTS, loaded from a file of its own."""

    def load(name):
        path = tmp_path / f"{name}.py"
        path.write_text(HEAD + FAULTS[name])
        return parts.load("verb", str(path))

    return load


@pytest.mark.parametrize(
    "name, check, words",
    [
        ("undescribed", "every key", "the key `strength` has no description"),
        ("lenient", "an unknown key", "the key `no_such_key` is accepted"),
        ("unset", "runs in a pipeline", "the key `strength` has no default: write SETTINGS"),
        ("noisy", "runs in a pipeline", "two runs with one seed differ"),
        ("appending", "runs in a pipeline", "goes on in its folder ends otherwise"),
    ],
)
def test_planted_fault_is_caught(verb, name, check, words):
    run_check = next(function for title, function in checks_of("verb", verb(name)) if title.startswith(check))
    with pytest.raises(Failed, match=re.escape(words)):
        run_check()


def test_a_verb_that_leaves_less_than_it_says_is_told_so(verb):
    *_, last = run_checks("verb", verb("keeping"))
    assert not last.passed and "left no model, though LEAVES of the verb `keeping` names `model`" in last.message
    assert "work.leave_module(stage, module)" in last.message


def test_an_error_of_the_verb_is_an_outcome_with_its_line(verb):
    *others, last = run_checks("verb", verb("refusing"))
    assert all(outcome.passed for outcome in others)
    assert not last.passed and "ValueError: not here (refusing.py:" in last.message
