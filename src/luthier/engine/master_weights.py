"""Master weights: the model computes in bf16 where that is fast, the optimiser moves fp32 copies.

The model's weights are the masters rounded stochastically, up or down with a probability by distance. Rounded to the
nearest, a weight of 0.1 on bf16's grid would not change before its master has moved by 2.4e-4: a dozen updates at 2e-5
would change nothing. Gradients of several micro-batches are summed in the masters' type as they appear, and each
low-precision gradient is freed at once. The step runs bucket by bucket, so that no second full-size gradient exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.engine.distributed import World
from luthier.models.kernels.gradients import GradientSums
from luthier.models.wide import wide_dtype

BUCKET_BYTES = 64 * 2**20
"""Bytes of masters that one optimiser steps at once, and so of wide gradients that exist at once."""
DRAWN = 2**20
"""Random numbers drawn per step; weights that are so many elements apart share one."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are clipped together, and their factor of the learning rate."""

    parameters: Mapping[str, nn.Parameter]
    rate: float = 1.0


class MasterWeights:
    """The trained parameters, their master copies, gradients and optimisers.

    Args:
        parameters: names and parameters of the model; types narrower than fp32 get an fp32 master.
        optimizer: a part with `make(parameters) -> torch.optim.Optimizer`.
        companions: groups of parameters that are trained with the model and do not belong to it.
        own_rules: name of a parameter → the optimizer part that moves it instead.

    Attributes:
        compute: name → the parameter that the forward uses.
        master: name → the parameter that the optimiser moves; the same object where it is wide enough.
        roundings: steps so far, the seed of the next rounding.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        optimizer: Any,
        companions: Sequence[ParameterGroup] = (),
        own_rules: Mapping[str, Any] | None = None,
    ):
        self.groups = [ParameterGroup(dict(parameters)), *companions]
        self.compute: dict[str, nn.Parameter] = {}
        for group in self.groups:
            self.compute |= group.parameters
        self.master = {name: _master(p) for name, p in self.compute.items()}
        self.sums = GradientSums()
        self.roundings = 0
        self._hooks: list[Any] = []
        rules = {name: (own_rules or {}).get(name, optimizer) for name in self.master}
        self.buckets: list[tuple[list[str], torch.optim.Optimizer, int]] = []
        for index, group in enumerate(self.groups):
            for names in self._split(group, rules):
                bucket_optimizer = rules[names[0]].make([self.master[name] for name in names])
                self.buckets.append((names, bucket_optimizer, index))

    def of_model(self) -> dict[str, Tensor]:
        """The model's masters by name, without those of companions."""
        return {name: self.master[name].detach() for name in self.groups[0].parameters}

    def _split(self, group: ParameterGroup, rules: Mapping[str, Any]) -> Iterator[list[str]]:
        """Names of consecutive parameters with one rule, of at most BUCKET_BYTES unless one is larger."""
        bucket: list[str] = []
        size = 0
        for name in group.parameters:
            master = self.master[name]
            full = size + master.numel() * master.element_size() > BUCKET_BYTES
            if bucket and (full or rules[name] is not rules[bucket[0]]):
                yield bucket
                bucket, size = [], 0
            bucket.append(name)
            size += master.numel() * master.element_size()
        if bucket:
            yield bucket

    def _narrow(self, name: str) -> bool:
        return self.compute[name] is not self.master[name]

    def accumulate(self, several: bool) -> None:
        """Start an update. `several`: more than one backward, or rank, will add to the gradients."""
        self.clear()
        for hook in self._hooks:
            hook.remove()
        # A single gradient is used as it is; only sums would lose small addends in a narrow type.
        narrow = [name for name in self.compute if several and self._narrow(name)]
        self.sums = GradientSums({self.compute[name]: self.master[name].dtype for name in narrow})
        self._hooks = [self.compute[name].register_post_accumulate_grad_hook(self._collect) for name in narrow]

    def _collect(self, parameter: Tensor) -> None:
        if parameter.grad is not None:  # None: a product has added it to the sum already
            self.sums.add(parameter, parameter.grad)
            parameter.grad = None

    def gradient(self, name: str) -> Tensor | None:
        """The complete, unclipped gradient of a parameter, or None if no loss has reached it."""
        total = self.sums.get(self.compute[name])
        return self.compute[name].grad if total is None else total

    def optimizer_state(self, name: str) -> dict[str, Any]:
        """The optimiser's state of a parameter, for changes in place. Empty before its first step."""
        for names, optimizer, _ in self.buckets:
            if name in names:
                return optimizer.state.get(self.master[name], {})
        raise KeyError(name)

    def reduce(self, world: World) -> None:
        """Sum gradients over ranks; a rank without micro-batches contributes zeros."""
        if world.size == 1:
            return
        for name, parameter in self.compute.items():
            # All ranks must send the same list of tensors.
            if self.gradient(name) is None:
                if parameter in self.sums:
                    self.sums.start(parameter).zero_()
                else:
                    parameter.grad = torch.zeros_like(parameter)
        world.sum_tensors(g for name in self.compute if (g := self.gradient(name)) is not None)

    def norms(self) -> list[float]:
        """L2 norm of the gradient of each group, the model's first."""
        return [self._norm(group) for group in self.groups]

    def _norm(self, group: ParameterGroup) -> float:
        norms = []
        for name in group.parameters:
            gradient = self.gradient(name)
            if gradient is not None:
                norms.append(torch.linalg.vector_norm(gradient, dtype=wide_dtype(gradient.dtype)))
        return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0

    @torch.no_grad()
    def step(self, scales: Sequence[float], factor: float) -> None:
        """Move the masters, then the model.

        Args:
            scales: factor of each group's gradient, from clipping.
            factor: of the optimiser's learning rate, multiplied by each group's own.
        """
        self.roundings += 1
        rounding = Rounding(self.roundings)
        for names, optimizer, group in self.buckets:
            scale, rate = scales[group], factor * self.groups[group].rate
            for name in names:
                gradient = self.gradient(name)
                self.master[name].grad = None if gradient is None else gradient.to(self.master[name].dtype)
                if gradient is not None and scale != 1.0:
                    self.master[name].grad.mul_(scale)  # pyright: ignore[reportOptionalMemberAccess]
            # From the default, not from the last rate: factors would multiply up from step to step.
            for settings in optimizer.param_groups:
                settings["lr"] = optimizer.defaults["lr"] * rate
            optimizer.step()
            # Freed before the next bucket's gradients are widened.
            for name in names:
                self.master[name].grad = None
                self.compute[name].grad = None
                self.sums.forget(self.compute[name])
                if self._narrow(name):
                    rounding.round(self.master[name], self.compute[name])

    def clear(self) -> None:
        """Discard all gradients."""
        for parameter in self.compute.values():
            parameter.grad = None
            self.sums.forget(parameter)

    def state(self) -> dict[str, Tensor]:
        """Masters and optimiser state as named tensors."""
        tensors = {f"master/{name}": master.detach() for name, master in self.master.items()}
        tensors["roundings"] = torch.tensor(self.roundings)
        for names, optimizer, _ in self.buckets:
            for name in names:
                for key, entry in optimizer.state.get(self.master[name], {}).items():
                    tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(entry)
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` returned, bit for bit."""
        # The model's own weights are not saved: the same masters and the same seed round to the same bits.
        self.roundings = int(tensors.get("roundings", 0))
        rounding = Rounding(self.roundings)
        for names, optimizer, _ in self.buckets:
            for name in names:
                master = self.master[name]
                master.copy_(tensors[f"master/{name}"])
                if self._narrow(name):
                    rounding.round(master, self.compute[name])
                for label, tensor in tensors.items():
                    if label.startswith("optimizer/") and label.endswith(f"/{name}"):
                        key = label.split("/")[1]
                        # Exactly: the name of another parameter may end in `/name` too.
                        if label == f"optimizer/{key}/{name}":
                            optimizer.state[master][key] = tensor.to(master.device).clone()


class Rounding:
    """Stochastic rounding from float32 to bfloat16: the expected value is the float32 value.

    The bits depend on `index` and on the order of the calls. Values that bfloat16 holds exactly do not change. Other
    types round to the nearest.
    """

    def __init__(self, index: int):
        self._index = index
        self._drawn: Tensor | None = None
        self._used = 0

    def round(self, wide: Tensor, narrow: Tensor) -> None:
        """Overwrite `narrow` with `wide`, of the same shape, rounded."""
        if narrow.dtype != torch.bfloat16 or wide.dtype != torch.float32:
            narrow.copy_(wide)
            return
        # Drawn on the processor, so that a GPU gets the same bits.
        if self._drawn is None:
            generator = torch.Generator().manual_seed(self._index)
            self._drawn = torch.randint(0, 2**16, (DRAWN,), dtype=torch.int32, generator=generator)
        self._drawn = self._drawn.to(wide.device)
        source, target = wide.detach().reshape(-1), narrow.detach().reshape(-1)
        start = 0
        while start < len(source):
            piece = slice(start, min(len(source), start + DRAWN - self._used))
            drawn = self._drawn[self._used : self._used + piece.stop - start]
            # bfloat16 keeps the upper 16 bits of float32. Adding uniform lower bits carries into them with a
            # probability proportional to the dropped part, which is a step to the next value; the rest is cut off.
            bits = (source[piece].view(torch.int32) + drawn).bitwise_and_(-(2**16))
            target[piece] = bits.view(torch.float32)
            self._used = (self._used + len(drawn)) % DRAWN
            start = piece.stop
        # `reshape` copies a tensor that is not contiguous.
        if target.data_ptr() != narrow.data_ptr():
            narrow.copy_(target.view(narrow.shape))


def _master(parameter: nn.Parameter) -> nn.Parameter:
    if parameter.dtype in (torch.float32, torch.float64):
        return parameter
    return nn.Parameter(parameter.detach().float(), requires_grad=True)
