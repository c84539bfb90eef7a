"""SpIEL: sparse differences from the frozen weights, whose positions are chosen during training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.errors import RecipeError
from luthier.parts import lazy
from luthier.tuners.base import Tuner, TunerInputs, disabled_layers
from luthier.update import Update

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from luthier.models import delta as deltas
    from luthier.tuners import _layers, _sparse, _tunable
else:
    torch = lazy("torch")
    deltas = lazy("luthier.models.delta")
    _layers = lazy("luthier.tuners._layers")
    _sparse, _tunable = lazy("luthier.tuners._sparse"), lazy("luthier.tuners._tunable")

OPTIMIZER_OPTIONS = {
    "adamw": ("lr", "betas", "eps", "weight_decay", "clip"),
    "sm3": ("lr", "eps", "weight_decay", "clip"),
}


class Spiel(Tuner):
    """Sparse fine-tuning by dropping and growing: k entries per matrix are trained, and move to where it counts.

    y = x (W + scatter(index, delta))ᵀ + b. After every `every` updates and `window` more, the share p of the
    deltas with the smallest size is dropped and as many entries grow. `selection` "accumulated" (SpIEL-AG) grows
    where the gradient summed over the window is largest and trains by AdamW with an age per entry; "momentum"
    (SpIEL-MA) grows where SM3's row × column accumulator is largest and trains by SM3; "fixed" never changes entries.
    p falls from `rate` to 0 (linear or cosine); with linear the first selection has p = 1. `density` counts all of the
    model's parameters, `count` is the number itself; each matrix gets its share by size.

    Candidates of a window are the k entries with the largest gradient of its first update. With several
    micro-batches this sums a dense gradient for that one update; `candidates: micro_batch` takes the first
    micro-batch's, as published, and depends on how the update is split. After a window of a updates an entry's age is
    a + 1, the number of its next step; the released code stores a.

    Raises: RecipeError for several processes, another optimiser than `adamw`'s options, or a model without `targets`.
    Source: arXiv 2401.16405, section 3.
    """

    PAPER: ClassVar[str] = "arXiv 2401.16405"
    DISABLING_RESTORES_BASE: ClassVar[bool] = True
    EXCLUDES: ClassVar[tuple[str, ...]] = ("full", "spiel")
    SETTINGS: ClassVar = (
        {"every": 3, "window": 2, "density": 0.2},
        {"every": 3, "window": 2, "density": 0.1},
        {"every": 3, "window": 2, "density": 0.2, "count": 300},
        {"every": 3, "window": 2, "density": 0.2, "targets": ["q_proj"]},
        {"every": 3, "window": 2, "density": 0.2, "selection": "momentum"},
        {"every": 3, "window": 2, "density": 0.2, "candidates": "micro_batch"},
        {"every": 3, "window": 1, "density": 0.2},
        {"every": 3, "window": 1, "density": 0.2, "decay": "cosine"},
        {"every": 3, "window": 1, "density": 0.2, "decay": "cosine", "rate": 0.9},
        {"every": 2, "window": 1, "density": 0.2, "decay": "cosine", "rate": 0.9},
    )

    density: float = Field(
        0.01,
        gt=0,
        le=1,
        description="Trained entries as a share of all the model's parameters, embeddings included; they lie in "
        "`targets` alone. Larger can learn more; the released code has 0.01.",
    )
    count: int | None = Field(
        None,
        ge=1,
        description="Number of trained entries itself, to match another method's. Null takes `density`.",
    )
    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear",
        description="Layers whose entries may be trained: `all-linear` is every linear layer but the output embedding;"
        " else a list of module names.",
    )
    selection: Literal["accumulated", "momentum", "fixed"] = Field(
        "accumulated",
        description="`accumulated` (SpIEL-AG) grows entries by summed gradients and moves them by AdamW; `momentum` "
        "(SpIEL-MA) does both by SM3; `fixed` never changes the entries.",
    )
    every: int = Field(
        20,
        ge=2,
        description="Updates between two choices of entries; more than `window`. Larger gives an entry longer to prove"
        " itself; the released code has 20.",
    )
    window: int = Field(
        5,
        ge=1,
        description="Updates whose gradients are summed before entries are replaced. Larger makes the choice less "
        "noisy; the released code has 5.",
    )
    rate: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Share of the entries that is replaced at the start of training; it falls to 0 over the budget. "
        "The released code has 0.2.",
    )
    decay: Literal["linear", "cosine"] = Field(
        "linear",
        description="How the replaced share falls: `linear`, as in the released code, where the first choice replaces "
        "all entries, or `cosine`.",
    )
    candidates: Literal["update", "micro_batch"] = Field(
        "update",
        description="Where candidates come from: the whole first `update` of a window, however it is cut, or (as "
        "published) its first `micro_batch`, which holds no dense gradient.",
    )

    @model_validator(mode="after")
    def _window_within(self) -> Spiel:
        if self.window >= self.every:
            raise ValueError(f"`window` ({self.window}) must be smaller than `every` ({self.every})")
        return self

    def ready(self, model: nn.Module) -> list[str]:
        _tunable.refuse_quantised(model, "spiel")
        return []

    def plan(self, model: nn.Module, inputs: TunerInputs) -> dict[str, Any]:
        """{"index": {layer: sorted flat positions [k]}}, drawn without replacement."""
        layers = self._layers(model)
        total = sum(layer.weight.numel() for _, layer in layers)
        budget = self.count or math.floor(self.density * sum(p.numel() for p in model.parameters()))
        generator = torch.Generator().manual_seed(inputs.seed)
        index = {}
        for name, layer in layers:
            size = layer.weight.numel()
            index[name] = _draw(size, min(size, max(1, budget * size // total)), generator)
        return {"index": index}

    def _layers(self, model: nn.Module) -> list[tuple[str, nn.Linear]]:
        """The adapted layers: all linear layers that can be, without the output embedding, or those of `targets`."""
        layers = _layers.linear_layers(model, self.targets, "spiel", head=False)
        return _tunable.tunable(layers, model, "spiel", named=self.targets != _layers.ALL)

    def apply(self, model: nn.Module, plan: dict[str, Any]) -> nn.Module:
        for name, layer in self._layers(model):
            _layers.replace_layer(model, name, _sparse.SparseLinear(layer, plan["index"][name], self.candidates))
        return model

    def parameters(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        return ((f"{name}.delta", layer.delta) for name, layer in _sparse.sparse_layers(model))

    def reached(self, model: nn.Module) -> Iterator[tuple[Tensor, int]]:
        return ((layer.weight, layer.delta.numel()) for _, layer in _sparse.sparse_layers(model))

    def left_out(self, model: nn.Module) -> Mapping[str, str]:
        return _tunable.objections_to(_layers.linear_layers(model, self.targets, "spiel", head=False), model)

    def optimizer(self, written: Any) -> Any:
        """AdamW with ages or SM3, with the options of `adamw` in the recipe.

        Raises:
            RecipeError: the recipe sets an option that this optimiser does not have.
        """
        kind = "sm3" if self.selection == "momentum" else "adamw"
        fields = type(written).model_fields
        # Compared with the defaults: a resolved recipe writes every option, so being written proves nothing.
        changed = {name for name, field in fields.items() if getattr(written, name) != field.default}
        unknown = sorted(changed - set(OPTIMIZER_OPTIONS[kind]))
        if unknown:
            raise RecipeError(
                f"train.optimizer.{unknown[0]}: the optimiser of `spiel` ({kind}) has no such option.",
                f"Its options: {', '.join(OPTIMIZER_OPTIONS[kind])}.",
            )
        options = {name: getattr(written, name) for name in written.model_fields_set - {"clip", "lr"}}
        if kind == "sm3":
            options.setdefault("eps", 1e-8)
        return _sparse.Rule(kind, lr=written.lr, **options)

    def start(self, policy: Any) -> Any:
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            raise RecipeError("tuner `spiel` runs in one process: ranks would choose different entries.")
        return _State(dict(_sparse.sparse_layers(policy.module)))

    def before_update(self, model: nn.Module, update: Update) -> None:
        """Open a window, or drop the gradients of an update that ran out of memory and is repeated."""
        # A cycle of `every` updates begins with its window; entries move once the window's last update is done.
        within = (update.index - 1) % self.every
        for _, layer in _sparse.sparse_layers(model):
            if self.selection != "accumulated" or within >= self.window:
                continue
            if within == 0 or layer.window is None:
                layer.window = _sparse.Window()
            layer.window.forget_update()

    def after_step(self, model: nn.Module, update: Update) -> None:
        for name, layer in _sparse.sparse_layers(model):
            if layer.window is not None:
                layer.window.close_update(len(layer.index))
            if self.selection != "fixed" and update.index % self.every == self.window:
                self._reselect(layer, update.optimizer_state(f"{name}.delta"), self.share(update.index, update.done))

    def _reselect(self, layer: _sparse.SparseLinear, state: dict[str, Tensor], share: float) -> None:
        quantity = math.floor(len(layer.index) * share)
        # Without optimiser state no gradient reached the layer, so there is nothing to choose by.
        if state and self.selection == "momentum":
            _sparse.grow_momentum(layer, state, quantity)
        elif state:
            _sparse.grow_accumulated(layer, state, quantity)
        layer.window = None

    def share(self, updates: int, done: float) -> float:
        """The share p of entries that is replaced after `updates`, with the share `done` of the budget spent."""
        if self.decay == "cosine":
            return self.rate * (1 + math.cos(math.pi * done)) / 2
        return 1.0 if updates == self.window else self.rate * (1 - done)

    def disabled(self, model: nn.Module) -> AbstractContextManager[None]:
        return disabled_layers(layer for _, layer in _sparse.sparse_layers(model))

    def delta(self, model: nn.Module) -> deltas.WeightDelta:
        """Differences from the base, fp32: flat positions and their values by layer."""
        changes = {}
        for name, layer in _sparse.sparse_layers(model):
            changes[f"{name}.weight"] = deltas.Change(
                layer.delta.detach().float().cpu(),
                deltas.tensor_hash(layer.weight),
                tuple(layer.weight.shape),
                index=layer.index.cpu(),
            )
        return deltas.WeightDelta(changes)

    def save(self, model: nn.Module, masters: dict[str, Tensor], folder: Path) -> None:
        """Write the complete model, and the differences from the base to `delta/`."""
        delta = self.delta(model)
        _layers.save_delta(delta, folder)
        with delta.applied(model):
            _layers.save_without(model, folder, lambda name: name.endswith(".delta"))

    def merge(self, model: nn.Module) -> nn.Module:
        for name, layer in list(_sparse.sparse_layers(model)):
            _layers.replace_layer(model, name, layer.merged())
        return model


class _State:
    """State for checkpoints: the positions of the entries, and the open window of each layer."""

    def __init__(self, layers: dict[str, _sparse.SparseLinear]):
        self.layers = layers

    def state_dict(self) -> dict[str, Tensor]:
        state = {}
        for name, layer in self.layers.items():
            state[f"{name}/index"] = layer.index
            window = layer.window
            if window is not None and window.updates:
                state[f"{name}/updates"] = torch.tensor(window.updates)
                for key in ("candidates", "first", "second"):
                    state[f"{name}/{key}"] = getattr(window, key)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, layer in self.layers.items():
            # Checkpoints lie between updates, when `dense` and `pending` are None: they are not saved.
            layer.index.copy_(state[f"{name}/index"])
            layer.window = None
            if f"{name}/updates" in state:
                kept = {key: state[f"{name}/{key}"].to(layer.index.device) for key in ("candidates", "first", "second")}
                layer.window = _sparse.Window(updates=int(state[f"{name}/updates"]), **kept)


def _draw(size: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` distinct sorted positions below `size`, [count]."""
    # A permutation of a large matrix's positions would take 8 bytes for every weight; few positions are drawn with
    # replacement instead, until enough are distinct.
    if count * 4 > size:
        return torch.randperm(size, generator=generator)[:count].sort().values
    drawn = torch.randint(size, (2 * count + 16,), generator=generator).unique()
    while len(drawn) < count:
        drawn = torch.cat([drawn, torch.randint(size, (count,), generator=generator)]).unique()
    return drawn[torch.randperm(len(drawn), generator=generator)[:count]].sort().values
