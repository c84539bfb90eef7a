"""UDS: keep candidates with large and varied logits that differ from those of recently kept candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.models.config import text_config
from luthier.parts import lazy
from luthier.select.base import Pool, Selector

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.select import _logits as logits
    from luthier.select import _sketch as sketch
    from luthier.types import Batch
else:
    logits = lazy("luthier.select._logits")
    sketch = lazy("luthier.select._sketch")


class UDS(Selector):
    """Utility and diversity of each candidate, from one forward pass.

    score_i = ‖L_i‖_* + diversity_weight · mean over z in Q of ‖z_i - z‖, with L_i [N,V] the logits of the
    candidate, z_i = vec(G2 L_i G1^T) a sketch of d2 x d1 numbers, Q a ring of the sketches kept last (the mean is 0
    while Q is empty). The nuclear norm is computed from L L^T in float64. For a linear head the logits are never
    computed (L L^T = H (W^T W) H^T); for another head they are computed in pieces of the vocabulary.

    The published code sketches with unnormalised transforms (`sketch_scale: fft_unnormalised`): distances are
    about sqrt(N V) / 2 times as large, N being `length`, so its weight 1.5e-3 at N = 512, V = 152k is 6.6 here.
    It also counts padding, whose amount depends on how rows were batched; Luthier never does. The last position of a
    record, which predicts nothing, is excluded.

    Raises: RunError for a record longer than `length`.
    Source: arXiv 2510.16882.
    """

    PAPER: ClassVar[str] = "arXiv 2510.16882"
    SETTINGS: ClassVar = (
        {},
        {"keep": 0.25},
        {"pool": 3},
        {"warmup": 2},
        {"diversity_weight": 0.0},
        {"positions": "targets"},
        {"center_logits": True},
        {"buffer_size": 2},
        {"sketch_vocabulary": 2},
        {"sketch_positions": 1},
        {"length": 32},
        {"sketch_scale": "fft_unnormalised"},
    )

    diversity_weight: float = Field(
        6.6,
        ge=0.0,
        description="Weight of the mean distance to remembered sketches; 0 ranks by the norm alone. 6.6 stands for the"
        " published 1.5e-3 at 512 positions and 152,000 tokens.",
    )
    buffer_size: int = Field(
        1024,
        ge=1,
        description="Number of sketches of kept candidates that are remembered; the oldest go first. Larger compares "
        "with more of the past; the paper has 1024.",
    )
    sketch_vocabulary: int = Field(
        128,
        ge=1,
        description="Size d1 of a sketch on the side of the vocabulary. Larger measures distances more exactly and "
        "costs memory; the paper has 128.",
    )
    sketch_positions: int = Field(
        8,
        ge=1,
        description="Size d2 of a sketch on the side of the positions. Larger measures distances more exactly and "
        "costs memory; the paper has 8.",
    )
    positions: Literal["tokens", "targets"] = Field(
        "tokens",
        description="Logits that are scored: those of all of a record's `tokens`, the prompt's too, or those of its "
        "`targets` alone.",
    )
    center_logits: bool = Field(
        False,
        description="Whether each position's mean is taken off its logits: the softmax does not see a constant, the "
        "norm does. The published code keeps it.",
    )
    length: int | None = Field(
        None,
        ge=1,
        description="Number of positions that a sketch covers; a longer record ends the run. Null takes the model's "
        "context, 4096 where it names none.",
    )
    sketch_scale: Literal["isometric", "fft_unnormalised"] = Field(
        "isometric",
        description="`isometric` keeps distances as they are; `fft_unnormalised` is the published code's transform, to"
        " which its weights (1.5e-3, 2.5e-3) belong.",
    )

    def start(self, policy: Any) -> Any:
        config = text_config(policy.module)
        length = self.length or getattr(config, "max_position_embeddings", None) or 4096
        vocabulary = policy.module.get_output_embeddings().weight.shape[0]
        across = sketch.Projection(vocabulary, self.sketch_vocabulary, self.sketch_scale)
        # Another seed, or positions and vocabulary would get the same signs.
        along = sketch.Projection(length, self.sketch_positions, self.sketch_scale, seed=sketch.SIGNS_SEED + 1)
        return logits.Sketcher(across, along, sketch.Ring(self.buffer_size, across.kept * along.kept))

    def features(self, policy: Any, batch: Batch, state: Any) -> dict[str, Tensor]:
        scored = logits.at_every_token(batch) if self.positions == "tokens" else batch
        norm, sketches = logits.norms_and_sketches(policy, scored, state, self.center_logits)
        return {"norm": norm, "sketch": sketches}

    def scores(self, pool: Pool) -> Tensor:
        distance = pool.state.ring.mean_distance(pool.features["sketch"])
        return pool.features["norm"] + self.diversity_weight * distance

    def commit(self, kept: Pool) -> None:
        kept.state.ring.push(kept.features["sketch"])
