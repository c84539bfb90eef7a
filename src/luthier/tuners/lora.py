"""LoRA: low-rank additions to the linear layers, through PEFT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.errors import RecipeError
from luthier.parts import lazy
from luthier.tuners.base import Tuner, TunerInputs

if TYPE_CHECKING:
    import peft
    import torch
    from torch import Tensor, nn

    from luthier.models import adapters, logits, quantised, weights
    from luthier.tuners import _layers, _tunable
else:
    peft = lazy("peft")
    torch = lazy("torch")
    adapters, quantised = lazy("luthier.models.adapters"), lazy("luthier.models.quantised")
    logits, weights = lazy("luthier.models.logits"), lazy("luthier.models.weights")
    _layers, _tunable = lazy("luthier.tuners._layers"), lazy("luthier.tuners._tunable")

CONVERTED = "PEFT takes the routed experts of this family in place of the layers of these names"
LOST = "PEFT would not find its adapter in the saved folder"


class LoRA(Tuner):
    """Low-rank adaptation: W + (alpha / r) B A, with A and B trained and W frozen.

    A [r,in] is random and B [out,r] zero, so training starts from the base model. With `rank_stabilised` the factor
    is alpha / √r (arXiv 2312.03732). The adapter is saved in PEFT's format, so PEFT loads it without Luthier.

    Raises: RecipeError where PEFT cannot attach the adapter to the layers of `targets`.
    Source: arXiv 2106.09685.
    """

    PAPER: ClassVar[str] = "arXiv 2106.09685"
    DISABLING_RESTORES_BASE: ClassVar[bool] = True
    SAVES_MODEL: ClassVar[bool] = False
    SETTINGS: ClassVar = (
        {},
        {"r": 4},
        {"alpha": 4.0},
        {"dropout": 0.3},
        {"targets": ["q_proj"]},
        {"rank_stabilised": True},
    )

    r: int = Field(
        16,
        ge=1,
        description="Rank, the width of the two trained matrices. Larger can learn more; parameters and their memory "
        "grow in proportion.",
    )
    alpha: float | None = Field(
        None,
        gt=0,
        description="Scale: what the two matrices add is multiplied by alpha / r. Null is 2r, so that a change of `r` "
        "alone keeps the factor at 2.",
    )
    dropout: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Probability that an input of the adapter is dropped in training; the frozen layer reads "
        "everything.",
    )
    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear",
        description="Layers with an adapter: `all-linear` is every linear layer but the output embedding; else names "
        "such as `[q_proj, v_proj]`, which learn less.",
    )
    rank_stabilised: bool = Field(
        False,
        description="Whether the scale is alpha / √r in place of alpha / r, which keeps high ranks from being damped.",
    )

    def ready(self, model: nn.Module) -> list[str]:
        return quantised.correct_gradients(model)

    def plan(self, model: nn.Module, inputs: TunerInputs) -> dict[str, Any]:
        return {"seed": inputs.seed}

    def apply(self, model: nn.Module, plan: dict[str, Any]) -> nn.Module:
        # Models that do not generate get PEFT's generic wrapper: the causal one needs the method tested for here.
        config = peft.LoraConfig(
            task_type="CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None,
            r=self.r,
            lora_alpha=self.alpha or 2 * self.r,  # pyright: ignore[reportArgumentType]
            lora_dropout=self.dropout,
            target_modules=self.targets,
            use_rslora=self.rank_stabilised,
        )
        asked = {name: layer.weight for name, layer in _layers.adapter_layers(model, self.targets)}
        objections = self._objections(model, config)
        config.exclude_modules = sorted(objections) or None
        # PEFT draws A from the global generator; forked, so that the draws of the training do not depend on the tuner.
        with torch.random.fork_rng(), adapters.peft_in_words():
            torch.manual_seed(plan["seed"])
            try:
                adapted = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
            except ValueError as error:
                _tunable.refuse_layers(objections, "lora")  # where nothing is left, they are the reason
                raise RecipeError(
                    f"tuner `lora` cannot be attached: {error}", "Name layers of this model in `targets`."
                ) from error
        self._leave_out_lost(adapted, objections)
        reached = {id(weight) for weight, _ in adapters.adapted_weights(adapted)}
        for name, weight in asked.items():
            if id(weight) not in reached:
                objections.setdefault(name, CONVERTED)
        adapted.left_out = objections  # pyright: ignore[reportArgumentType]
        return adapted

    def _objections(self, model: nn.Module, config: Any) -> dict[str, str]:
        """Layers of `targets` that cannot have an adapter, and why.

        Raises:
            RecipeError: one of them was asked for by name.
        """
        layers, owners = dict(_layers.adapter_layers(model, self.targets)), weights.Owners(model)
        objections = {}
        for name, layer in layers.items():
            reason = _tunable.objection_to_adapter(layer, owners) or _forbidden(model, config, name.rpartition(".")[2])
            if reason:
                objections[name] = reason
        rest = {name: layer for name, layer in layers.items() if name not in objections}
        objections |= dict.fromkeys(logits.bypassed(model, rest), _tunable.BYPASSED)
        if self.targets != _layers.ALL:
            _tunable.refuse_layers(objections, "lora")
        return objections

    def _leave_out_lost(self, adapted: Any, objections: dict[str, str]) -> None:
        """Take the adapter off layers whose tensors PEFT would not read back from the saved folder.

        Raises:
            RecipeError: such a layer was asked for by name, or is no layer of its own.
        """
        lost = dict.fromkeys(adapters.lost_in_files(adapted), LOST)
        base = adapted.get_base_model()
        wrappers = [name for name in lost if hasattr(base.get_submodule(name), "parameter_name")]
        if self.targets != _layers.ALL or wrappers:
            _tunable.refuse_layers({name: lost[name] for name in wrappers} or lost, "lora")
        for name in lost:
            _layers.replace_layer(base, name, base.get_submodule(name).base_layer)
        objections |= lost
        adapted.peft_config["default"].exclude_modules = sorted(objections) or None

    def reached(self, model: nn.Module) -> Iterator[tuple[Tensor, int]]:
        return adapters.adapted_weights(model)

    def left_out(self, model: nn.Module) -> Mapping[str, str]:
        return getattr(model, "left_out", {})

    def disabled(self, model: nn.Module) -> AbstractContextManager[Any]:
        return model.disable_adapter()  # pyright: ignore[reportCallIssue]

    def save(self, model: nn.Module, masters: dict[str, Tensor], folder: Path) -> None:
        """Write a PEFT adapter folder with the fp32 master values."""
        state = {name: masters.get(name, tensor) for name, tensor in model.state_dict().items()}
        with adapters.peft_in_words():
            model.save_pretrained(folder, state_dict=state, safe_serialization=True)  # pyright: ignore[reportCallIssue]

    def merge(self, model: nn.Module) -> nn.Module:
        return adapters.merged(model)

    def refuse_merge(self, model: nn.Module) -> None:
        adapters.refuse_unmergeable(model)


def _forbidden(model: nn.Module, config: Any, key: str) -> str | None:
    """PEFT's own objection to a layer's name on this model, as to the last projection of state-space mixers."""
    check = getattr(peft.LoraModel, "_check_target_module_compatiblity", None)
    try:
        if check is not None and hasattr(model, "config"):
            check(None, config, model, key)
    except ValueError:
        return "PEFT does not allow adapters there, since the layer's kernel does not call the layer"
    return None
