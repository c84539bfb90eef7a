"""LoRAMoE: low-rank experts in the feed-forward layers, mixed by a router with a balancing loss."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.errors import RecipeError
from luthier.parts import lazy
from luthier.tuners.base import Tuner, TunerInputs, disabled_layers
from luthier.types import Batch, Term
from luthier.update import Update

if TYPE_CHECKING:
    import safetensors.torch as safetensors
    import torch
    from torch import Tensor, nn

    from luthier.models import context
    from luthier.tuners import _experts, _layers, _tunable
else:
    torch = lazy("torch")
    safetensors = lazy("safetensors.torch")
    context = lazy("luthier.models.context")
    _experts = lazy("luthier.tuners._experts")
    _layers, _tunable = lazy("luthier.tuners._layers"), lazy("luthier.tuners._tunable")

VALUES = "experts.safetensors"


class LoRAMoE(Tuner):
    """Routed low-rank experts on a frozen model: y = W x + (alpha / r) Σ_i g_i B_i A_i x, g = softmax(R x).

    All `experts` run for every token. `balance` × Σ_layers L is added to the loss, the mean over rows of

        L = Var(Z) / Mean(Z)²  (`form` mean: Var(Z) / Mean(Z)),  Z_n = I_n Q_n,  Q_n = Σ_tokens g_n.

    With `types`, the name of a column of the data that holds 0 or 1, rows of type 0 own the first half of the experts
    and rows of type 1 the second: I is 1 - `delta` for a row's own half and 1 + `delta` for the other, so that at the
    minimum the own half has the share (1 + delta) / 2. The paper's I has the opposite signs, which swaps the two
    halves (`home: less`). Without `types` I is 1, and the minimum is equal use of all experts.

    The published code takes Z over all rows of a micro-batch at once, padding included (`pool: micro_batch`, without
    padding); that loss depends on how an update is split and on lengths. `pool: row` is the same formula of one row at
    a time; both have their minimum where all Z of a row are equal. `form` mean grows with the number of tokens.
    The tuning cannot be merged: the mixture depends on the input.

    Raises: RecipeError where the model has no layer of `targets`, or the rows have no column `types`.
    Source: arXiv 2312.09979, and its code.
    """

    PAPER: ClassVar[str] = "arXiv 2312.09979"
    DISABLING_RESTORES_BASE: ClassVar[bool] = True
    MERGES: ClassVar[bool] = False
    WHOLE_ROWS: ClassVar[bool] = True
    SETTINGS: ClassVar = (
        {"dropout": 0.0},
        {},
        {"r": 2},
        {"alpha": 8.0},
        {"experts": 4},
        {"targets": ["down_proj"]},
        {"balance": 1.0},
        {"form": "mean"},
        {"types": "task_type", "delta": 0.1},
        {"types": "other_type", "delta": 0.1},
        {"types": "task_type", "delta": 0.3},
        {"types": "task_type", "delta": 0.1, "home": "less"},
        {"pool": "micro_batch"},
    )

    experts: int = Field(
        8,
        ge=1,
        description="Experts N per layer; all run for every token. Even, as they form two halves, unless `balance` is "
        "0. The authors' script has 8.",
    )
    r: int = Field(
        4,
        ge=1,
        description="Rank of one expert; a layer holds N·r in all. Larger can learn more at a cost in proportion. The "
        "authors' script has 4.",
    )
    alpha: float = Field(
        32.0,
        gt=0,
        description="Scale: the mixture of the experts is multiplied by alpha / r. The authors' script has 32.",
    )
    dropout: float = Field(
        0.05,
        ge=0.0,
        lt=1.0,
        description="Probability that an input of the experts is dropped in training; the router reads everything. The"
        " authors' script has 0.05.",
    )
    targets: list[str] = Field(
        ["gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="Names of the linear layers that get experts; those of the feed-forward blocks, as in the authors'"
        " script.",
    )
    balance: float = Field(
        0.1,
        ge=0.0,
        description="Weight of the balancing loss, a sum over all adapted layers. Larger evens out the use of experts "
        "and fits the data less; 0 is off, as in the authors' script.",
    )
    form: Literal["squared_mean", "mean"] = Field(
        "squared_mean",
        description="`squared_mean` is Var / Mean², as in the code; `mean` is Var / Mean, as in the paper, which grows"
        " with the number of tokens.",
    )
    types: str | None = Field(
        None,
        description="Column of the data with each record's type, 0 or 1, by which the halves of the experts "
        "specialise. Null asks for equal use of all.",
    )
    delta: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="How far the halves differ by type: a type's own half is to have the share (1 + delta) / 2. Needs "
        "`types`; 0.1 is quoted for the paper.",
    )
    home: Literal["more", "less"] = Field(
        "more",
        description="`more` gives a type's own half the larger share; `less` is the sign as the paper prints it, where"
        " the halves change names.",
    )
    pool: Literal["row", "micro_batch"] = Field(
        "row",
        description="Whose entries of Z share one variance: those of one row, or (the released code) those of all rows"
        " of a micro-batch, which depends on how the update is cut and pushes where rows are of unequal length.",
    )

    @model_validator(mode="after")
    def _groups(self) -> LoRAMoE:
        if self.balance and self.experts % 2:
            raise ValueError(f"{self.experts} experts do not form two halves: set an even number, or `balance: 0`")
        if self.delta and self.types is None:
            raise ValueError("`delta` needs the type of each row: name the column in `types`")
        return self

    @property
    def fields(self) -> tuple[str, ...]:
        return () if self.types is None else (self.types,)

    def plan(self, model: nn.Module, inputs: TunerInputs) -> dict[str, Any]:
        """{"seed": seed of the initial values}."""
        for name in self.fields:
            if inputs.rows and f"field:{name}" not in inputs.rows[0].streams:
                raise RecipeError(
                    f"tuner `loramoe` reads the column `{name}`, which the rows of this training do not have.",
                    "Rollouts drop the columns of the data: remove `types` and `delta`.",
                )
        return {"seed": inputs.seed}

    def apply(self, model: nn.Module, plan: dict[str, Any]) -> nn.Module:
        generator = torch.Generator().manual_seed(plan["seed"])
        for name, layer in self._layers(model):
            mixed = _experts.ExpertLinear(layer, self.experts, self.r, self.alpha / self.r, self.dropout, generator)
            _layers.replace_layer(model, name, mixed)
        return model

    def _layers(self, model: nn.Module) -> list[tuple[str, nn.Linear]]:
        layers = _layers.linear_layers(model, self.targets, "loramoe", head=True)
        # Experts stand beside a weight and leave it alone, so it may belong to several layers.
        return _tunable.tunable(layers, model, "loramoe", named=True, changes=False)

    def ready(self, model: nn.Module) -> list[str]:
        _tunable.refuse_quantised(model, "loramoe")
        return []

    def reached(self, model: nn.Module) -> Iterator[tuple[Tensor, int]]:
        for _, layer in _experts.experts_of(model):
            yield layer.weight, layer.down.numel() + layer.up.numel() + layer.router.numel()

    def disabled(self, model: nn.Module) -> AbstractContextManager[None]:
        return disabled_layers(layer for _, layer in _experts.experts_of(model))

    def units(self, batch: Batch) -> dict[str, float]:
        return {"rows": float(len(batch.examples))}

    @contextmanager
    def micro_batch_context(self, policy: Any, batch: Batch, update: Update) -> Iterator[None]:
        """Record, in the objective's forward, the use of each expert in each layer."""
        if not self.balance:
            yield
            return
        usage = _experts.Usage(batch)
        try:
            with context.forward_context(**{_experts.USAGE: usage}):
                yield
        finally:  # breaks a reference cycle: checkpointing holds the context, and the recorded tensors' graph holds it
            usage.by_layer.clear()

    def terms(self, policy: Any, batch: Batch, update: Update) -> list[Term]:
        """`balance` × the imbalance summed over layers and rows (pooled: R times that of all R rows together)."""
        if not self.balance:
            return []
        expected = self._expected(batch)
        total = sum(self._imbalance(expected * q) for q in self._used(policy, batch))
        assert not isinstance(total, int)
        update.meter("imbalance", total.detach(), "rows")
        return [Term(total, "rows", self.balance)]

    def _imbalance(self, z: Tensor) -> Tensor:
        """Sum over the rows of Z [R,N] of their imbalance; pooled, R times that of all entries."""
        if self.pool == "micro_batch":  # times R, since the engine divides by the update's number of rows
            return len(z) * _experts.imbalance(z.flatten(), self.form)
        return _experts.imbalance(z, self.form).sum()

    def _used(self, policy: Any, batch: Batch) -> list[Tensor]:
        """Q [R,N] of every layer."""
        usage = context.context_value(_experts.USAGE)
        layers = [layer for _, layer in _experts.experts_of(policy.module)]
        if any(layer not in usage.by_layer for layer in layers):  # a coupled loss may run none in this context
            policy.hidden(batch)
        return [usage.by_layer[layer] for layer in layers]

    def _expected(self, batch: Batch) -> Tensor:
        """I of each row and expert, [R,N]; [1,1] without `types`."""
        if self.types is None:
            return torch.ones(1, 1, device=batch.ids.device)
        types = batch.streams[f"field:{self.types}"].values
        return _experts.expectations(types, self.experts, self.delta if self.home == "more" else -self.delta)

    def save(self, model: nn.Module, masters: dict[str, Tensor], folder: Path) -> None:
        """Write the base model to `base/`, the experts to `experts.safetensors` and the options to `tuner.json`.

        Only Luthier loads the folder: a mixture that depends on the input has no form in transformers or PEFT.
        """
        own: set[str] = set()
        for name, _ in _experts.experts_of(model):
            own |= {f"{name}.{key}" for key in ("down", "up", "router")}
        values = {name: masters[name].detach().cpu().contiguous() for name in sorted(own)}
        safetensors.save_file(values, folder / VALUES)
        (folder / "tuner.json").write_text(json.dumps({"kind": self.kind, **self.model_dump()}, indent=2) + "\n")
        _layers.save_without(model, folder / "base", own.__contains__)

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        self.apply(model, {"seed": 0})
        values = safetensors.load_file(folder / VALUES)
        with torch.no_grad():
            for name, layer in _experts.experts_of(model):
                for key in ("down", "up", "router"):
                    getattr(layer, key).copy_(values[f"{name}.{key}"])
        return model.requires_grad_(False)

    def merge(self, model: nn.Module) -> nn.Module:
        raise RecipeError(
            "What `loramoe` has learned cannot be folded into the weights: its mixture depends on the input.",
            "Train with it in the last step, or take `lora`.",
        )
