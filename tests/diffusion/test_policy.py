"""DenoiserPolicy over tiny transformers of diffusers: called as by their pipelines, trained by the same engine."""

import inspect

import numpy
import pytest
import torch

from luthier import parts
from luthier.conformance.base import apart
from luthier.conformance.tiny import seeded
from luthier.conformance.training import GradientDescent
from luthier.diffusion.policy import DenoiserPolicy, flux, load_denoiser, stable_diffusion_3
from luthier.engine.assemble import Parts, tuned_policy
from luthier.engine.budget import Budget
from luthier.engine.source import Records
from luthier.engine.trainer import Batching, Trainer
from luthier.errors import ModelError
from luthier.models.sets import ParameterSet
from luthier.objectives.diffusion.diffusion_nft import DiffusionNFT
from luthier.objectives.diffusion.flow import Flow
from luthier.tuners.base import TunerInputs
from luthier.types import Row, Stream

diffusers = pytest.importorskip("diffusers")

SD3 = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4, "joint_attention_dim": 32}
SD3 |= {
    "caption_projection_dim": 32,
    "pooled_projection_dim": 32,
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
}
FLUX = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 4, "in_channels": 16}
FLUX |= {"joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (2, 2, 4)}
MAKERS = {
    "sd3": lambda: diffusers.SD3Transformer2DModel(**SD3),
    "flux": lambda: diffusers.FluxTransformer2DModel(**FLUX),
}


def network(name, dtype=torch.float64):
    return seeded(MAKERS[name], dtype, 0)


def rows(count=6):
    drawn = []
    for index in range(count):
        draw = numpy.random.default_rng(index)
        values = {"latent": (4, 8, 8), "condition:text": (5, 32), "condition:pooled": (32,)}
        streams = {n: Stream(draw.standard_normal(shape).astype(numpy.float32), "row") for n, shape in values.items()}
        streams |= {"level": Stream(0.1 + 0.1 * index, "row"), "optimality": Stream(0.15 * index, "row")}
        drawn.append(Row(f"r{index}", numpy.zeros(0, dtype=numpy.int32), streams))
    return drawn


def inputs(dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    shapes = ((3, 4, 8, 8), (3, 5, 32), (3, 32))
    x, text, pooled = (torch.randn(*shape, generator=draw, dtype=dtype) for shape in shapes)
    return x, torch.tensor([0.2, 0.5, 0.9], dtype=dtype), {"text": text, "pooled": pooled}


@pytest.mark.parametrize("name, call", [("sd3", stable_diffusion_3), ("flux", flux)])
def test_it_predicts_like_x_for_each_row_by_itself(name, call):
    policy = DenoiserPolicy(network(name))
    assert policy.call is call
    x, level, condition = inputs()
    together = policy.velocity(x, level, condition)
    assert together.shape == x.shape
    alone = policy.velocity(x[1:2], level[1:2], {key: values[1:2] for key, values in condition.items()})
    assert torch.allclose(together[1:2], alone, atol=1e-5)
    other = policy.velocity(x, level.flip(0), condition)
    assert not torch.allclose(together, other, atol=1e-6)


def test_flux_patches_are_those_of_its_pipeline():
    pipeline = diffusers.FluxPipeline
    x, level, condition = inputs(torch.float32)
    arguments = {}

    class Echo(torch.nn.Module):
        def forward(self, hidden_states, **more):
            arguments.update(more, hidden_states=hidden_states)
            return (hidden_states,)

    assert torch.equal(flux(Echo(), x, level, condition), x)  # unpacked as packed
    assert torch.equal(arguments["hidden_states"], pipeline._pack_latents(x, 3, 4, 8, 8))
    assert torch.equal(arguments["img_ids"], pipeline._prepare_latent_image_ids(3, 4, 4, x.device, x.dtype))
    assert arguments.keys() <= inspect.signature(diffusers.FluxTransformer2DModel.forward).parameters.keys()


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_the_gradient_does_not_depend_on_the_split(name):
    changes = []
    for micro in (6, 2):
        chosen = Parts(Flow(), (parts.build("tuner", "full"),), GradientDescent(), parts.build("schedule", "constant"))
        policy = tuned_policy(network(name), chosen, TunerInputs(), make=DenoiserPolicy)
        before = {key: p.detach().clone() for key, p in policy.module.named_parameters()}
        Trainer(policy, chosen, Records(rows(), 0, Budget("updates", 1)), Batching(6, micro)).train()
        changes.append({key: p.detach() - before[key] for key, p in policy.module.named_parameters()})
    # float64 all through but for sines and norms that these models compute in float32
    assert apart(*changes) < 1e-5


def test_lora_and_nft_on_a_transformer():
    lora = parts.build("tuner", {"kind": "lora", "r": 2, "targets": ["to_q", "to_k", "to_v"]})
    objective = DiffusionNFT(kl_weight=0.1)
    adamw = parts.build("optimizer", {"kind": "adamw", "lr": 1e-3})
    chosen = Parts(objective, (lora,), adamw, parts.build("schedule", "constant"))
    policy = tuned_policy(network("sd3", torch.float32), chosen, TunerInputs(), make=DenoiserPolicy)
    assert policy.call is stable_diffusion_3
    events = []
    source = Records(rows(), 0, Budget("updates", 4))
    Trainer(policy, chosen, source, Batching(6, 3), observe=events.append).train()
    assert events[0]["kl"] == events[0]["from_old"] == 0.0 and events[3]["kl"] > 0
    assert set(policy.sets["old"].values) == {n for n, p in policy.module.named_parameters() if p.requires_grad}
    x, level, condition = inputs(torch.float32)
    with policy.sets["initial"].using(), policy.module.disable_adapter():
        without = policy.velocity(x, level, condition)
    with policy.sets["initial"].using():
        assert torch.allclose(policy.velocity(x, level, condition), without, atol=1e-6)


def test_saved_by_diffusers_loaded_here(tmp_path):
    module = network("sd3", torch.float32)
    module.save_pretrained(tmp_path / "sd3")
    x, level, condition = inputs(torch.float32)
    loaded = load_denoiser(tmp_path / "sd3").eval()
    assert torch.equal(
        DenoiserPolicy(loaded).velocity(x, level, condition), DenoiserPolicy(module).velocity(x, level, condition)
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ModelError, match="UNet2DModel"):
        load_denoiser(tmp_path / "other")


def test_a_set_is_taken_on_and_laid_down_again():
    module = network("sd3", torch.float32).train()
    held = ParameterSet(module)
    weight = next(module.parameters())
    with torch.no_grad():
        weight.add_(1.0)
    moved = weight.detach().clone()
    with held.using():
        assert torch.allclose(weight, moved - 1.0, atol=1e-6)
        assert not module.training and not torch.is_grad_enabled()
    assert torch.equal(weight, moved) and module.training and torch.is_grad_enabled()
    held.follow(0.25)
    name = next(iter(held.values))
    assert torch.allclose(held.values[name], moved - 0.25, atol=1e-6)
