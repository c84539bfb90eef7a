"""LoRA: low-rank additions to the linear layers, through PEFT."""

from __future__ import annotations

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
else:
    peft = lazy("peft")
    torch = lazy("torch")


class LoRA(Tuner):
    """Low-rank adaptation: W + (alpha / r) B A, with A and B trained and W frozen.

    A [r,in] is random and B [out,r] zero, so training starts from the base model. With `rank_stabilised` the factor
    is alpha / √r (arXiv 2312.03732). The adapter is saved in PEFT's format, so PEFT loads it without Luthier.

    Raises: RecipeError where PEFT cannot attach the adapter to the layers of `targets`.
    Source: arXiv 2106.09685.
    """

    PAPER: ClassVar[str] = "arXiv 2106.09685"
    DISABLING_RESTORES_BASE: ClassVar[bool] = True
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
        # PEFT draws A from the global generator; forked, so that the draws of the training do not depend on the tuner.
        with torch.random.fork_rng():
            torch.manual_seed(plan["seed"])
            try:
                return peft.get_peft_model(model, config, autocast_adapter_dtype=False)
            except ValueError as error:
                raise RecipeError(
                    f"tuner `lora` cannot be attached: {error}", "Name layers of this model in `targets`."
                ) from error

    def disabled(self, model: nn.Module) -> AbstractContextManager[Any]:
        return model.disable_adapter()  # pyright: ignore[reportCallIssue]

    def save(self, model: nn.Module, masters: dict[str, Tensor], folder: Path) -> None:
        """Write a PEFT adapter folder with the fp32 master values."""
        state = {name: masters.get(name, tensor) for name, tensor in model.state_dict().items()}
        model.save_pretrained(folder, state_dict=state, safe_serialization=True)  # pyright: ignore[reportCallIssue]

    def merge(self, model: nn.Module) -> nn.Module:
        return model.merge_and_unload()  # pyright: ignore[reportCallIssue]
