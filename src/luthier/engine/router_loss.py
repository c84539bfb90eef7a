"""The load-balancing loss of a mixture of experts, where the model's config asks for it (`output_router_logits`).

Transformers computes it over all positions of a forward, so that it would depend on how records are cut into
micro-batches. Here it is that of each row alone, averaged over the rows of the update: the sequence-wise balance loss
of DeepSeek-V3 (arXiv 2412.19437).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import torch
from pydantic import PrivateAttr
from torch import Tensor, nn

from luthier.models.config import text_config
from luthier.models.policy import TokenPolicy, reading
from luthier.tuners.base import Tuner
from luthier.types import Batch, Row, Term
from luthier.update import Update

NAME = "load_balancing_loss_func"
"""What transformers calls the function in each family's file."""
COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")


class RouterLoss(Tuner):
    """Adds coefficient · mean over rows of the family's own load-balancing loss of the row to every update.

    It trains no parameter of its own, and reads whole rows.
    """

    WHOLE_ROWS: ClassVar[bool] = True
    function: Callable[[tuple[Tensor, ...]], Tensor]
    coefficient: float
    _outputs: list[tuple[Tensor, ...]] = PrivateAttr(default_factory=list)

    def units(self, batch: Batch) -> dict[str, float]:
        return {"rows": float(len(batch.examples))}

    def micro_batch_context(self, policy: TokenPolicy, batch: Batch, update: Update) -> AbstractContextManager[Any]:
        return self._collecting(policy)

    def terms(self, policy: TokenPolicy, batch: Batch, update: Update) -> list[Term]:
        totals = [self.total(logits, batch) for logits in self._outputs]
        if not totals:
            return []
        # An objective may run several forwards of a micro-batch: each counts alike.
        total = torch.stack(totals).mean()
        update.meter("router_loss", total.detach(), "rows")
        return [Term(total, "rows", self.coefficient)]

    def total(self, logits: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """The sum over the batch's rows of the loss of each row's positions: logits [B·T,E] of each layer."""
        owners = batch.example_of.flatten()
        losses = []
        for example in range(len(batch.examples)):
            here = (owners == example).nonzero()[:, 0]
            losses.append(self.function(tuple(layer.reshape(len(owners), -1)[here] for layer in logits)))
        return torch.stack(losses).sum()

    @contextmanager
    def _collecting(self, policy: TokenPolicy) -> Iterator[None]:
        def collect(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if torch.is_grad_enabled():
                self._outputs.append(output.router_logits)

        handle = _inner(policy.module).register_forward_hook(collect)
        try:
            yield
        finally:
            handle.remove()
            self._outputs.clear()


def find_router_loss(policy: TokenPolicy, row: Row) -> tuple[RouterLoss | None, str]:
    """The router's loss that the model's config asks for, and if it cannot be part of the training, why not.

    Args:
        row: on which the loss is compared with the one that the model itself computes.
    """
    module = _inner(policy.module)
    configs = (text_config(module), module.config)
    if not any(getattr(config, "output_router_logits", False) for config in configs):
        return None, ""
    numbers = [getattr(config, name, None) for config in configs for name in COEFFICIENTS]
    coefficient = next((number for number in numbers if number is not None), None)
    if not coefficient:
        return None, "its config gives no coefficient" if coefficient is None else ""
    ids = torch.as_tensor(row.ids, dtype=torch.long, device=next(module.parameters()).device)[None]
    calls: list[dict[str, Any]] = []
    try:
        with reading(module), _recorded(module, calls):
            output = module(input_ids=ids, use_cache=False, return_dict=True)
        function, settings = calls[-1].pop("function"), calls[-1]
        loss = RouterLoss(function=lambda logits: function(logits, **settings), coefficient=float(coefficient))
        alone = Batch(ids, torch.zeros_like(ids), torch.zeros_like(ids), (row.id,), (row.record,), {})
        ours, own = loss.total(output.router_logits, alone), output.aux_loss
        if not torch.allclose(ours.float(), own.float(), rtol=1e-3):
            return None, f"its loss of a row is {float(own):.4g}, and computed apart {float(ours):.4g}"
    except Exception as error:
        return None, f"its loss could not be computed apart ({type(error).__name__})"
    return loss, ""


@contextmanager
def _recorded(module: nn.Module, calls: list[dict[str, Any]]) -> Iterator[None]:
    """Record the numbers that the family's function is called with: of experts, and of experts per token."""
    family = sys.modules[type(module).__module__]
    function = getattr(family, NAME)

    def record(logits: Any, num_experts: Any = None, top_k: Any = 2, attention_mask: Any = None) -> Any:
        calls.append({"function": function, "num_experts": num_experts, "top_k": top_k})
        return function(logits, num_experts, top_k, attention_mask)

    setattr(family, NAME, record)
    try:
        yield
    finally:
        setattr(family, NAME, function)


def _inner(module: Any) -> Any:
    """The model itself, behind an adapter."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module
