"""The parts of a training: what they need is asked once, and what does not go together is refused."""

import pytest

from luthier import parts
from luthier.conformance.training import GradientDescent
from luthier.engine.assemble import Parts
from luthier.errors import RecipeError
from luthier.objectives.base import TokenObjective
from luthier.objectives.sum import build_objective


def parts_of(objective, *tuners, optimizer=None, selector=None):
    return Parts(
        build_objective(objective),
        tuple(parts.build("tuner", tuner) for tuner in tuners),
        optimizer or parts.build("optimizer", "adamw"),
        parts.build("schedule", "constant"),
        None if selector is None else parts.build("selector", selector),
    )


def test_needs_are_those_of_all_parts():
    typed = {"kind": "loramoe", "types": "world", "balance": 0.1}
    rho = {"kind": "rho", "reference": "initial"}
    needs = parts_of("dpo", typed, selector=rho).needs
    assert needs.columns == ("logprobs:initial",) and needs.judgement == "pairs" and needs.fields == ("world",)
    assert needs.candidate_columns == ("logprobs:initial",)
    assert not needs.references and not needs.frozen_copy and needs.whole_rows == "loramoe"
    needs = parts_of("asft", "lora", "full").needs
    assert needs.references == {"initial"} and needs.frozen_copy and needs.judgement == ""
    assert parts_of("lfu", "lora").needs.whole_rows == "lfu" and parts_of("sft", "lora").needs.whole_rows is None


def test_a_part_is_asked_once():
    asked = []

    class Counting(TokenObjective):
        @property
        def reads(self):
            asked.append(1)
            return ("logits:initial",)

    needs = Parts(Counting(), (), None, None).needs
    assert needs.columns == () and needs.references == {"initial"} and needs.reads == ("logits:initial",)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "chosen, words",
    [
        (parts_of("siglip", "full"), "`siglip` works on models of the modality `contrastive`; this one is `language`"),
        (parts_of("sft", "full", "s2ft"), "cannot be combined"),
        (parts_of("sft", "spiel", optimizer=GradientDescent()), "rule of its own"),
    ],
)
def test_conflicts_are_refused(chosen, words):
    with pytest.raises(RecipeError, match=words):
        chosen.refuse_conflicts("language")
    parts_of("sft", "lora", selector="max_loss").refuse_conflicts("language")


def test_only_a_selector_that_reads_the_model_is_bound_to_a_modality():
    parts_of("siglip", "full", selector="random").refuse_conflicts("contrastive")
    with pytest.raises(RecipeError, match="`max_loss` works on models of the modality `language`"):
        parts_of("siglip", "full", selector="max_loss").refuse_conflicts("contrastive")
