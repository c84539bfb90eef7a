"""siglip: the card's numbers, transformers' own loss, and what it learns."""

import math

import pytest
import torch

from luthier import parts
from luthier.conformance.tiny import TINY_MODELS, TinyModel, dual_encoder, seeded
from luthier.conformance.training import trainer
from luthier.data.batches import collate
from luthier.engine.budget import Budget
from luthier.engine.trainer import Batching
from luthier.models.encoder import EncoderPolicy
from luthier.objectives.contrastive.siglip import SigLIP
from luthier.tuners.full import Full
from luthier.types import Row, Stream
from luthier.update import Update
from luthier.vision._encoders import DualEncoder
from luthier.vision.digits import digit_rows


def loss_of(x, y, scale=10.0, bias=-10.0, same=None, streams=None):
    x, y = (torch.tensor(v, dtype=torch.float64) for v in (x, y))
    count = len(x)
    features = {"image": x, "text": y}
    features |= {"scale": torch.full((count,), math.log(scale)).double(), "bias": torch.full((count,), bias).double()}
    (term,) = SigLIP(same=same).coupled_loss(features, streams or {}, Update(1, 0))
    return float(term.total / count)


def test_the_card():
    diagonal = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.7071, 0.7071]]
    assert loss_of(*diagonal) == pytest.approx(1.863137, abs=5e-5)
    opposed = [[1.0, 0.0], [-1.0, 0.0]]
    assert loss_of(opposed, opposed) == pytest.approx(0.693147, abs=1e-6)  # the default bias holds it at ln 2
    assert loss_of(opposed, opposed, bias=0.0) == pytest.approx(9.08e-5, abs=1e-7)


def test_rows_of_one_value_belong_together():
    twice = [[1.0, 0.0], [1.0, 0.0]]
    streams = {"label": torch.tensor([3, 3])}
    apart_, together = loss_of(twice, twice, bias=0.0), loss_of(twice, twice, same="label", streams=streams, bias=0.0)
    assert together == pytest.approx(2 * 4.54e-5, abs=1e-7)  # -log σ(10), four positives over two rows
    assert apart_ > 10


def test_it_is_the_loss_of_transformers_siglip():
    from transformers import SiglipConfig, SiglipModel

    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config=text
        | {"vocab_size": 32, "max_position_embeddings": 8, "projection_size": 16, "bos_token_id": 0, "eos_token_id": 1},
        vision_config=text | {"image_size": 8, "patch_size": 4, "num_channels": 1},
    )
    model = seeded(lambda: SiglipModel(config), torch.float64, 0)
    rows = []
    for index, row in enumerate(digit_rows(5)):
        ids = torch.randint(0, 32, (6,), generator=torch.Generator().manual_seed(index)).numpy()
        rows.append(Row(row.id, row.ids, {"image": row.streams["image"], "caption": Stream(ids, "row")}))
    batch = collate(rows)
    objective, policy = SigLIP(), EncoderPolicy(model, {"pixel_values": "image", "input_ids": "caption"})
    (term,) = objective.coupled_loss(objective.features(policy, batch), {}, Update(1, 0))
    pixels = batch.streams["image"].values.double()
    own = model(pixel_values=pixels, input_ids=batch.streams["caption"].values, return_loss=True)
    assert float(term.total.detach()) / 5 == pytest.approx(float(own.loss.detach()), rel=1e-9)
    wanted = torch.autograd.grad(own.loss, [model.logit_scale, model.logit_bias])
    gradients = torch.autograd.grad(term.total / 5, [model.logit_scale, model.logit_bias])
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(wanted, gradients, strict=True))


def retrieved(policy, rows):
    """Share of images whose nearest label is their own, and of labels whose nearest image bears it."""
    batch = collate(rows)
    with torch.no_grad():
        outputs = policy.outputs(batch, ("image", "text"))
    labels = batch.streams["label"].values
    image, text = (torch.nn.functional.normalize(outputs[name], dim=-1) for name in ("image", "text"))
    similarity = image @ text.T
    return tuple(float((labels[similarity.argmax(axis)] == labels).double().mean()) for axis in (1, 0))


def test_labels_and_images_find_each_other(monkeypatch):
    modality = TinyModel(lambda dtype, seed: seeded(DualEncoder, dtype, seed), dual_encoder, digit_rows)
    monkeypatch.setitem(TINY_MODELS, "contrastive", modality)
    adamw = parts.build("optimizer", {"kind": "adamw", "lr": 5e-3})
    more = {"dtype": torch.float32, "disturb": False, "optimizer": adamw, "budget": Budget("updates", 150)}
    run = trainer(SigLIP(same="label"), Full(), digit_rows(1000), Batching(64, 24), **more)
    unseen = digit_rows(300, seed=1)
    before = retrieved(run.policy, unseen)
    run.train()
    after = retrieved(run.policy, unseen)
    print(before, after)
    assert max(before) < 0.4 and min(after) > 0.9
    bias, scale = (float(run.policy.module.get_parameter(name).detach()) for name in ("logit_bias", "logit_scale"))
    assert bias != -10.0 and scale != pytest.approx(math.log(10.0))  # both are learned
