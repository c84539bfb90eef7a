"""The checks of optimisers: what they move, and that all of their state goes through a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from luthier import parts
from luthier.conformance.base import Failed, check_options, variants
from luthier.conformance.training import check_determinism, check_resume, some_updates

SHAPES = ((6, 4), (4,), (3, 2, 2))
STEPS = 4


def parameters() -> list[nn.Parameter]:
    """A matrix, a vector and a tensor of three axes, the same each time."""
    draw = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]


def step(optimizer: torch.optim.Optimizer, tensors: list[nn.Parameter], number: int) -> None:
    """One step; its gradients depend on its number alone."""
    draw = torch.Generator().manual_seed(100 + number)
    for tensor in tensors:
        tensor.grad = torch.randn(tensor.shape, generator=draw)
    optimizer.step()


def check_interface(part: Any) -> None:
    """`lr` and `clip` are options, and `make` gives a torch optimiser of all parameters at that rate."""
    missing = [name for name in ("lr", "clip") if name not in type(part).model_fields]
    if missing:
        raise Failed(f"there is no option `{missing[0]}`: the trainer reads `lr` and `clip` of every optimiser")
    tensors = parameters()
    optimizer = part.make(tensors)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise Failed(f"`make` returns {type(optimizer).__name__}, not a torch optimiser")
    held = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
    if held != {id(tensor) for tensor in tensors}:
        raise Failed(f"the optimiser holds {len(held)} of {len(tensors)} parameters")
    if optimizer.defaults.get("lr") != part.lr:
        raise Failed("`lr` is not the learning rate of the torch optimiser: schedules multiply that rate")


def check_movement(part: Any) -> None:
    """A step moves every parameter to finite values; at rate 0 none moves."""
    for rate, moves in ((1.0, True), (0.0, False)):
        tensors = parameters()
        before = [tensor.detach().clone() for tensor in tensors]
        optimizer = part.make(tensors)
        for group in optimizer.param_groups:  # as the trainer applies a schedule
            group["lr"] = optimizer.defaults["lr"] * rate
        step(optimizer, tensors, 0)
        for tensor, start in zip(tensors, before, strict=True):
            if not bool(torch.isfinite(tensor).all()):
                raise Failed(f"after one step a parameter of shape {tuple(start.shape)} is not finite")
            if torch.equal(tensor, start) == moves:
                fault = "does not move" if moves else "moves although the learning rate is 0"
                raise Failed(f"a parameter of shape {tuple(start.shape)} {fault}")


def check_round_trip(part: Any) -> None:
    """After `state_dict` and `load_state_dict` the next step is the same, bit for bit."""
    tensors = parameters()
    optimizer = part.make(tensors)
    for number in range(STEPS):
        step(optimizer, tensors, number)
    copies = [nn.Parameter(tensor.detach().clone()) for tensor in tensors]
    again = part.make(copies)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(optimizer, tensors, STEPS)
    step(again, copies, STEPS)
    if not all(torch.equal(tensor, copied) for tensor, copied in zip(tensors, copies, strict=True)):
        raise Failed("after `load_state_dict` the next step differs: is there state outside `self.state`?")


def checks(part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of an optimiser, in the order they are run."""
    optimizers = variants(part)
    first = optimizers[0]
    sft, full = parts.build("objective", "sft"), parts.build("tuner", "full")

    def weights(optimizer: Any) -> dict[str, Tensor]:
        return some_updates(sft, full, optimizer)

    yield "options `lr` and `clip`, all parameters", lambda: check_interface(first)
    yield "moves every parameter, none at rate 0", lambda: check_movement(first)
    yield "its state goes through `state_dict`", lambda: check_round_trip(first)
    yield "deterministic by seed", lambda: check_determinism(sft, full, first)
    yield "exact resume", lambda: check_resume(sft, full, first)
    yield "every option changes something", lambda: check_options(optimizers, weights)
