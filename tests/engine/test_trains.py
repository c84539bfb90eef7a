"""What a training reaches: kinds of weights by their place in the model, and the share of each that a tuner changes."""

import pytest

from luthier import parts
from luthier.engine.assemble import apply_tuners
from luthier.engine.trains import what_trains
from luthier.models.kinds import weights_of
from luthier.tuners.base import TunerInputs
from support.families import family


def trains(model, *specs):
    tuners = [parts.build("tuner", spec) for spec in specs]
    weights = weights_of(model)
    return what_trains(weights, tuners, apply_tuners(model, tuners, TunerInputs(0, ())))


def kinds(table):
    return {kind.kind: kind for kind in table.kinds}


def test_every_weight_has_one_kind():
    model = family("mixtral", tie_word_embeddings=False)
    weights = weights_of(model)
    assert sum(weight.numbers for weight in weights) == sum(p.numel() for p in model.parameters())
    by_kind = {}
    for weight in weights:
        by_kind.setdefault(weight.kind, set()).add(weight.name.split(".")[-2] + "." + weight.name.split(".")[-1])
    assert by_kind["routed experts"] == {"experts.gate_up_proj", "experts.down_proj"}
    assert by_kind["router"] == {"gate.weight"}
    assert by_kind["head"] == {"lm_head.weight"} and by_kind["embeddings"] == {"embed_tokens.weight"}
    assert by_kind["dense layers"] == {f"{key}_proj.weight" for key in "qkvo"}


@pytest.mark.parametrize("kind", ["deepseek_v3", "qwen2_moe", "granitemoe", "gpt_oss", "llama4_text", "jetmoe"])
def test_routed_experts_are_told_from_shared_ones(kind):
    options = {"qk_head_dim": None, "num_key_value_heads": 4, "head_dim": 4} if kind == "deepseek_v3" else {}
    weights = weights_of(family(kind, **options))
    experts = [weight for weight in weights if weight.kind == "routed experts"]
    assert experts and all(weight.tensor.dim() == 3 or "bias" in weight.name for weight in experts)
    assert not any("shared" in weight.name for weight in experts)
    assert {weight.kind for weight in weights if "shared_expert" in weight.name} <= {"dense layers"}
    routers = [weight for weight in weights if weight.kind == "router"]
    assert routers and all(4 in weight.tensor.shape for weight in routers)


def test_adapters_reach_other_things_in_other_families():
    frozen = trains(family("granitemoe"), "lora")
    assert kinds(frozen)["routed experts"].reached == 0 and kinds(frozen)["dense layers"].reached == 1
    assert any("none of the routed experts" in line for line in frozen.warnings())
    adapted = trains(family("mixtral"), "lora")
    assert kinds(adapted)["routed experts"].reached == 1 and not adapted.warnings()
    options = {"qk_head_dim": None, "num_key_value_heads": 4, "head_dim": 4}
    half = trains(family("deepseek_v3", **options), "lora")
    assert 0 < kinds(half)["dense layers"].reached < 1
    assert any("leaves out 6 layers" in line for line in half.warnings())


def test_tied_embeddings_are_one_weight():
    table = kinds(trains(family("llama", tie_word_embeddings=True), "full"))
    assert table["embeddings and head (tied)"].weights == 61 * 32 and "head" not in table
    assert sum(kind.share for kind in table.values()) == pytest.approx(1)
    assert all(kind.reached == 1 and kind.trained == kind.weights for kind in table.values())


@pytest.mark.parametrize(
    "spec", [{"kind": "spiel", "count": 500}, {"kind": "s2ft", "targets": {"down_proj": 0.5}}, {"kind": "lora", "r": 2}]
)
def test_numbers_trained_are_those_of_the_optimiser(spec):
    model = family("llama")
    table = trains(model, spec)
    tuner = parts.build("tuner", spec)
    again = apply_tuners(family("llama"), [tuner], TunerInputs(0, ()))
    assert sum(kind.trained for kind in table.kinds) == sum(p.numel() for _, p in tuner.parameters(again))
    assert table.to_json()["tuner"] == spec["kind"]


def test_two_tuners_are_one_table():
    table = trains(
        family("llama"), {"kind": "s2ft", "targets": {"down_proj": 0.5}}, {"kind": "lora", "targets": ["q_proj"]}
    )
    assert table.tuner == "s2ft+lora" and 0 < kinds(table)["dense layers"].reached < 1
