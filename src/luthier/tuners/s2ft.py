"""S2FT: a few attention heads and feed-forward channels, trained densely."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.errors import RecipeError
from luthier.parts import lazy
from luthier.tuners.base import Tuner, TunerInputs

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from luthier.data import batches
    from luthier.models import delta as deltas
    from luthier.tuners import _layers, _scores, _slices, _units
else:
    torch = lazy("torch")
    batches = lazy("luthier.data.batches")
    deltas = lazy("luthier.models.delta")
    _layers, _scores = lazy("luthier.tuners._layers"), lazy("luthier.tuners._scores")
    _slices, _units = lazy("luthier.tuners._slices"), lazy("luthier.tuners._units")

Target = Literal["o_proj", "down_proj", "v_proj", "up_proj"]


class S2FT(Tuner):
    """Structured sparse fine-tuning: whole heads and channels are picked once, and their slice of W is trained.

    y = W x with W[:, I] trained (`o_proj`, `down_proj`; I: columns of the picked units) or W[I, :] trained
    (`v_proj`, `up_proj`). The backward makes dW[:, I] = dy^T x[..., I] only. `targets` gives the share of
    units, int(share * units * layers) of them and at least one. `selection` scores units by the norm of their
    slice (weight), the mean size of what flows through them (activation), both multiplied (product), or the
    norm of their gradient, on `calibration` training records; the paper names these without formulas.

    `permute` moves coupled rows and columns together so that slices are ranges; a head never leaves its
    group. Results are in the model's own order and agree with the unpermuted ones to rounding.
    Source: arXiv 2412.06289, sections 3 and 4.
    """

    PAPER: ClassVar[str] = "arXiv 2412.06289"
    DISABLING_RESTORES_BASE: ClassVar[bool] = True
    EXCLUDES: ClassVar[tuple[str, ...]] = ("full", "s2ft")
    SAME_RESULT: ClassVar = ("permute",)
    SETTINGS: ClassVar = (
        {},
        {"targets": {"v_proj": 0.5, "up_proj": 0.1, "down_proj": 0.1}},
        {"selection": "weight"},
        {"selection": "weight", "smallest": True},
        {"selection": "product"},
        {"selection": "gradient"},
        {"selection": "activation", "targets": {"down_proj": 0.3, "o_proj": 0.3}},
        {"selection": "activation", "targets": {"down_proj": 0.3, "o_proj": 0.3}, "calibration": 1},
        {"selection": "activation", "targets": {"down_proj": 0.3, "o_proj": 0.3}, "scope": "layer"},
        {"selection": "activation", "targets": {"down_proj": 0.3, "o_proj": 0.3}, "permute": True},
    )

    targets: dict[Target, float] = Field(
        {"down_proj": 0.02, "o_proj": 0.05},
        min_length=1,
        description="Share of units trained by layer name: heads of `o_proj` and `v_proj`, channels of `down_proj` and"
        " `up_proj`. Published for a 7B model: 0.052 of heads, 0.02 of channels.",
    )
    selection: Literal["random", "weight", "activation", "product", "gradient"] = Field(
        "random",
        description="What units are picked by: `random` (as in the released code), the norm of their `weight`, the "
        "size of their `activation`, the `product` of both, or the norm of their `gradient`.",
    )
    smallest: bool = Field(
        False,
        description="Whether units with the smallest scores are picked in place of the largest; `selection: random` "
        "has no scores.",
    )
    scope: Literal["global", "layer"] = Field(
        "global",
        description="`global` ranks the units of all layers together, so that layers get different numbers; `layer` "
        "picks the same share in each.",
    )
    calibration: int = Field(
        8,
        ge=1,
        description="Training records on which activations and gradients are measured, in one batch. More steadies the"
        " scores; `random` and `weight` read none.",
    )
    permute: bool = Field(
        False,
        description="Whether coupled rows and columns are reordered, so that trained slices are contiguous. Changes no"
        " result but by rounding.",
    )

    def plan(self, model: nn.Module, inputs: TunerInputs) -> dict[str, Any]:
        """The picked units of each layer, sorted, by the layer's name."""
        picked: dict[str, Tensor] = {}
        for place, (target, share) in enumerate(sorted(self.targets.items())):
            if not 0 < share <= 1:
                raise RecipeError(f"tuner.targets.{target}: a share lies above 0 and at most at 1, found {share}.")
            layers = _units.slabs(model, target)
            scores = self._scores(model, layers, inputs, place)
            picked |= {layer.name: units for layer, units in _pick(layers, scores, share, self.scope) if len(units)}
        return {"picked": picked}

    def _scores(self, model: nn.Module, layers: Sequence[_units.Slab], inputs: TunerInputs, place: int) -> list[Tensor]:
        """What the largest are picked of, [units] per layer."""
        if self.selection == "random" or layers[0].linear.weight.is_meta:  # without values only the count matters
            generator = torch.Generator().manual_seed(inputs.seed * 1_000_003 + place)
            return [torch.rand(layer.units, generator=generator, dtype=torch.float64) for layer in layers]
        scores = [_scores.weight_scores(layer) for layer in layers]
        if self.selection != "weight":
            batch = batches.collate(inputs.first(self.calibration)).to(layers[0].linear.weight.device)
            look = _scores.gradient_scores if self.selection == "gradient" else _scores.activation_scores
            seen = look(model, layers, batch)
            scores = [w * a for w, a in zip(scores, seen, strict=True)] if self.selection == "product" else seen
        return [-score.cpu() if self.smallest else score.cpu() for score in scores]

    def apply(self, model: nn.Module, plan: dict[str, Any]) -> nn.Module:
        picked: dict[str, Tensor] = plan["picked"]
        places = self._permuted(model, picked) if self.permute else picked
        for target in self.targets:
            for layer in _units.slabs(model, target):
                if layer.name in picked:
                    now, by = places[layer.name].sort()
                    index, origin = (_units.spread(units, layer.size) for units in (now, picked[layer.name][by]))
                    sliced = _slices.SliceLinear(layer.linear, index, layer.dim, origin)
                    _layers.replace_layer(model, layer.name, sliced)
        return model

    def _permuted(self, model: nn.Module, picked: dict[str, Tensor]) -> dict[str, Tensor]:
        """Permute the blocks; where each picked unit is now, in the order of `picked`."""
        size, chosen = _units.head_size(model), {name: units.tolist() for name, units in picked.items()}
        places = {}
        for block in _units.blocks(model):
            order = block.order(size, chosen)
            block.permute(order, size)
            block.module.register_buffer("unit_order", order, persistent=False)
            for key in _units.DIMS:
                if (name := f"{block.name}.{key}") in picked:
                    now = torch.argsort(_units.group_order(order, block.groups(size)) if key == "v_proj" else order)
                    places[name] = now[picked[name]]
        return places

    @contextmanager
    def disabled(self, model: nn.Module) -> Iterator[None]:
        """The base, in the exact bits that it started from."""
        layers = [layer for _, layer in _slices.slices_of(model)]
        for layer in layers:
            layer.switch(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.switch(True)

    def delta(self, model: nn.Module, masters: dict[str, Tensor]) -> deltas.WeightDelta:
        """What was learned, for the untouched base: rows or columns by layer, fp32."""
        changes = {}
        with _in_own_order(model):
            for name, layer in _slices.slices_of(model):
                values = masters.get(f"{name}.slice", layer.slice.detach()).float() - layer.start.float()
                before = layer.weight.detach().index_copy(layer.dim, layer.origin, layer.start)
                changes[f"{name}.weight"] = deltas.Change(
                    values.cpu(),
                    deltas.tensor_hash(before),
                    tuple(before.shape),
                    index=layer.origin.cpu(),
                    dim=layer.dim,
                )
        return deltas.WeightDelta(changes)

    def save(self, model: nn.Module, masters: dict[str, Tensor], folder: Path) -> None:
        """The complete model, and in `delta/` what was learned alone."""
        _layers.save_delta(self.delta(model, masters), folder)
        with _in_own_order(model):
            _layers.save_without(model, folder, lambda name: name.endswith(".slice"))

    def merge(self, model: nn.Module) -> nn.Module:
        """Ordinary layers with the trained weights.

        They are in the model's own order, except in blocks where another tuner was put on top of permuted layers:
        what it learned is in their order, and the function is the same in either.
        """
        for block in _settled(model):
            block.permute(torch.argsort(block.module.unit_order), _units.head_size(model))  # pyright: ignore
            del block.module.unit_order
        for name, layer in list(_slices.slices_of(model)):
            _layers.replace_layer(model, name, layer.plain())
        return model


def _pick(layers: Sequence[_units.Slab], scores: Sequence[Tensor], share: float, scope: str) -> Iterator[Any]:
    """(layer, picked units, sorted): the largest scores of each layer, or of all layers together."""
    if scope == "layer":
        for layer, score in zip(layers, scores, strict=True):
            yield layer, score.topk(max(1, int(share * layer.units))).indices.sort().values
        return
    together = torch.cat(list(scores))
    chosen = torch.zeros(len(together), dtype=torch.bool)
    chosen[together.topk(max(1, int(share * len(together)))).indices] = True
    for layer, mask in zip(layers, chosen.split([layer.units for layer in layers]), strict=True):
        yield layer, mask.nonzero()[:, 0]


def _settled(model: nn.Module) -> list[_units.UnitBlock]:
    """Write the trained values down, and give the permuted blocks that may be put back into their own order."""
    for _, layer in _slices.slices_of(model):
        layer.write()
    return [block for block in _units.blocks(model) if hasattr(block.module, "unit_order") and block.plain()]


@contextmanager
def _in_own_order(model: nn.Module) -> Iterator[None]:
    """The weights as the untouched model orders them; no forward may run inside."""
    found, size = _settled(model), _units.head_size(model)
    orders: list[Tensor] = [block.module.unit_order for block in found]  # pyright: ignore[reportAssignmentType]
    for block, order in zip(found, orders, strict=True):
        block.permute(torch.argsort(order), size)
    try:
        yield
    finally:
        for block, order in zip(found, orders, strict=True):
            block.permute(order, size)
