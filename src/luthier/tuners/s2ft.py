"""S2FT: train the weights of a few attention heads and feed-forward channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    from luthier.tuners import _layers, _scores, _slices, _tunable, _units
else:
    torch = lazy("torch")
    batches = lazy("luthier.data.batches")
    deltas = lazy("luthier.models.delta")
    _layers, _scores = lazy("luthier.tuners._layers"), lazy("luthier.tuners._scores")
    _slices, _units = lazy("luthier.tuners._slices"), lazy("luthier.tuners._units")
    _tunable = lazy("luthier.tuners._tunable")

Target = Literal["o_proj", "down_proj", "v_proj", "up_proj"]


class S2FT(Tuner):
    """Structured sparse fine-tuning: whole heads and channels are picked once, and their slice of W is trained.

    y = W x with W[:, I] trained (`o_proj`, `down_proj`; I: columns of the picked units) or W[I, :] trained
    (`v_proj`, `up_proj`). The backward computes dW[:, I] = dy^T x[..., I] only. `targets` gives the share of
    units, int(share * units * layers) of them and at least one. `selection` scores units by the norm of their
    slice (weight), the mean |activation| (activation), the product of both (product), or the norm of their
    gradient, on `calibration` training records; the paper names these without formulas.

    `permute` moves coupled rows and columns together so that slices are contiguous; a head stays in its key-value
    group. Saved weights are in the model's own order and equal the unpermuted ones up to rounding.

    Raises: RecipeError for a share outside (0, 1], and where the model has no layer of a target's name.
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
        """{"picked": {layer: sorted units [k]}}."""
        picked: dict[str, Tensor] = {}
        for stream, (target, share) in enumerate(sorted(self.targets.items())):
            if not 0 < share <= 1:
                raise RecipeError(f"tuner.targets.{target}: a share must be above 0 and at most 1, not {share}.")
            layers = _units.unit_layers(model, target)
            scores = self._scores(model, layers, inputs, stream)
            picked |= {layer.name: units for layer, units in _pick(layers, scores, share, self.scope) if len(units)}
        return {"picked": picked}

    def _scores(
        self, model: nn.Module, layers: Sequence[_units.UnitLayer], inputs: TunerInputs, stream: int
    ) -> list[Tensor]:
        """Scores [units] of each layer, of which the largest are picked; `stream` keys the draw of `random`."""
        # An estimate of memory plans on the meta device, where weights have no values and only the count matters.
        if self.selection == "random" or layers[0].linear.weight.is_meta:
            generator = torch.Generator().manual_seed(inputs.seed * 1_000_003 + stream)
            return [torch.rand(layer.units, generator=generator, dtype=torch.float64) for layer in layers]
        scores = [_scores.weight_scores(layer) for layer in layers]
        if self.selection != "weight":
            batch = batches.collate(inputs.first(self.calibration)).to(layers[0].linear.weight.device)
            measure = _scores.gradient_scores if self.selection == "gradient" else _scores.activation_scores
            measured = measure(model, layers, batch)
            scores = [w * a for w, a in zip(scores, measured, strict=True)] if self.selection == "product" else measured
        return [-score.cpu() if self.smallest else score.cpu() for score in scores]

    def apply(self, model: nn.Module, plan: dict[str, Any]) -> nn.Module:
        picked: dict[str, Tensor] = plan["picked"]
        positions = self._permute(model, picked) if self.permute else picked
        for target in self.targets:
            for layer in _units.unit_layers(model, target):
                if layer.name not in picked:
                    continue
                units, by = positions[layer.name].sort()
                index = _units.spread(units, layer.size)
                origin = _units.spread(picked[layer.name][by], layer.size)
                sliced = _slices.SliceLinear(layer.linear, index, layer.dim, origin)
                _layers.replace_layer(model, layer.name, sliced)
        return model

    def _permute(self, model: nn.Module, picked: dict[str, Tensor]) -> dict[str, Tensor]:
        """Permute the blocks in place; returns the new positions of the picked units, in the order of `picked`.

        Raises:
            RecipeError: a picked unit is in no block that can be permuted, or the model computes something else then.
        """
        units = {name: picks.tolist() for name, picks in picked.items()}
        # Whether a block is refused must not depend on the units that were drawn: all that hold a target are permuted.
        chosen = [block for block in _units.blocks(model) if any(hasattr(block.module, key) for key in self.targets)]
        known = {f"{block.name}.{key}" for block in chosen for key in _units.DIMS}
        if stray := sorted(picked.keys() - known):
            raise RecipeError(
                f"`permute` does not know the layers that share their units with {stray[0]}.",
                "Set `permute: false`: the result is the same.",
            )
        for block in chosen:
            block.refuse_unknown()
        positions = {}
        with _units.unchanged(model):
            for block in chosen:
                order = block.order(units)
                block.permute(order)
                # `merge` and `save` undo the permutation. Not persistent: a saved model must not contain it.
                block.module.register_buffer("unit_order", order, persistent=False)
                for key in _units.DIMS:
                    if (name := f"{block.name}.{key}") in picked:
                        # The units of v_proj are key-value groups, those of the other layers heads or channels.
                        own = _units.group_order(order, block.groups) if key == "v_proj" else order
                        positions[name] = torch.argsort(own)[picked[name]]
        return positions

    def ready(self, model: nn.Module) -> list[str]:
        _tunable.refuse_quantised(model, "s2ft")
        return []

    def reached(self, model: nn.Module) -> Iterator[tuple[Tensor, int]]:
        return ((layer.weight, layer.slice.numel()) for _, layer in _slices.slices_of(model))

    def left_out(self, model: nn.Module) -> Mapping[str, str]:
        layers = _layers.linear_layers(model, list(self.targets), "s2ft", head=False)
        return _tunable.objections_to(layers, model)

    @contextmanager
    def disabled(self, model: nn.Module) -> Iterator[None]:
        """The base model, bit for bit: the slices' initial values are put back, not subtracted."""
        layers = [layer for _, layer in _slices.slices_of(model)]
        for layer in layers:
            layer.switch(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.switch(True)

    def delta(self, model: nn.Module, masters: dict[str, Tensor]) -> deltas.WeightDelta:
        """Differences from the untouched base, fp32: rows or columns by layer, in the base's own order."""
        changes = {}
        with _original_order(model):
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
        """Write the complete model, and the differences from the base to `delta/`."""
        _layers.save_delta(self.delta(model, masters), folder)
        with _original_order(model):
            _layers.save_without(model, folder, lambda name: name.endswith(".slice"))

    def merge(self, model: nn.Module) -> nn.Module:
        """Replace the slice layers by ordinary layers with the trained weights.

        Units are in the model's own order, except in blocks where another tuner wrapped a permuted layer: its
        parameters are in the permuted order. The function of the model is the same in both orders.
        """
        for block in _write_slices(model):
            block.permute(torch.argsort(block.module.unit_order))  # pyright: ignore[reportArgumentType]
            del block.module.unit_order
        for name, layer in list(_slices.slices_of(model)):
            _layers.replace_layer(model, name, layer.merged())
        return model


def _pick(layers: Sequence[_units.UnitLayer], scores: Sequence[Tensor], share: float, scope: str) -> Iterator[Any]:
    """Yield (layer, sorted units [k]) with the largest scores of each layer, or of all layers together."""
    if scope == "layer":
        for layer, score in zip(layers, scores, strict=True):
            yield layer, score.topk(max(1, int(share * layer.units))).indices.sort().values
        return
    all_scores = torch.cat(list(scores))
    picked = torch.zeros(len(all_scores), dtype=torch.bool)
    picked[all_scores.topk(max(1, int(share * len(all_scores)))).indices] = True
    for layer, mask in zip(layers, picked.split([layer.units for layer in layers]), strict=True):
        yield layer, mask.nonzero()[:, 0]


def _write_slices(model: nn.Module) -> list[_units.UnitBlock]:
    """Copy the slices into the weights; returns the permuted blocks whose own order can be restored."""
    for _, layer in _slices.slices_of(model):
        layer.write()
    permuted = [block for block in _units.blocks(model) if hasattr(block.module, "unit_order")]
    return [block for block in permuted if block.has_linear_layers()]


@contextmanager
def _original_order(model: nn.Module) -> Iterator[None]:
    """A context with the weights in the untouched model's order; a forward inside would write slices out of order."""
    blocks = _write_slices(model)
    orders: list[Tensor] = [block.module.unit_order for block in blocks]  # pyright: ignore[reportAssignmentType]
    for block, order in zip(blocks, orders, strict=True):
        block.permute(torch.argsort(order))
    try:
        yield
    finally:
        for block, order in zip(blocks, orders, strict=True):
            block.permute(order)
