"""Master weights: the model computes in bf16 where that is fast, the optimiser moves fp32 copies.

The model gets them rounded at random, up or down by how near each neighbour is. Rounded to the nearest, a weight of
0.1 that starts on bf16's grid would not move before its master has gone 2.4e-4: a dozen updates at 2e-5 change
nothing. Gradients of several micro-batches are summed in the masters' type as they appear, each low-precision
gradient being freed at once; the step runs bucket by bucket, so that no second full-size gradient exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.engine.distributed import World
from luthier.models.kernels.gradients import GradientSums

BUCKET_BYTES = 64 * 2**20
DRAWN = 2**20
"""Random numbers of one rounding; weights so far apart share one."""


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
        beside: groups of parameters that are trained with the model and are no part of it.
        own: another such part, by name of the parameter that it moves instead.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        optimizer: Any,
        beside: Sequence[ParameterGroup] = (),
        own: Mapping[str, Any] | None = None,
    ):
        self.groups = [ParameterGroup(dict(parameters)), *beside]
        self.compute = {name: p for group in self.groups for name, p in group.parameters.items()}
        self.master = {name: _master(p) for name, p in self.compute.items()}
        self.sums = GradientSums()
        self.roundings = 0
        self._hooks: list[Any] = []
        rules = {name: (own or {}).get(name, optimizer) for name in self.master}
        self.buckets = [
            (names, rules[names[0]].make([self.master[n] for n in names]), index)
            for index, group in enumerate(self.groups)
            for names in self._split(group, rules)
        ]

    def of_model(self) -> dict[str, Tensor]:
        """The model's own masters by name, without what is trained beside it."""
        return {name: self.master[name].detach() for name in self.groups[0].parameters}

    def _split(self, group: ParameterGroup, rules: Mapping[str, Any]) -> Iterator[list[str]]:
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
        """Start an update. `several`: more than one backward (or rank) will add to the gradients."""
        self.clear()
        for hook in self._hooks:
            hook.remove()
        narrow = [name for name in self.compute if several and self._narrow(name)]
        self.sums = GradientSums({self.compute[name]: self.master[name].dtype for name in narrow})
        self._hooks = [self.compute[name].register_post_accumulate_grad_hook(self._collect) for name in narrow]

    def _collect(self, parameter: Tensor) -> None:
        if parameter.grad is not None:  # None: it was added to the sum where it was made
            self.sums.add(parameter, parameter.grad)
            parameter.grad = None

    def gradient(self, name: str) -> Tensor | None:
        """The complete, unclipped gradient of a parameter, or None when nothing reached it."""
        found = self.sums.get(self.compute[name])
        return self.compute[name].grad if found is None else found

    def optimizer_state(self, name: str) -> dict[str, Any]:
        """What the optimiser keeps for a parameter, by name; to be changed in place. Empty before its first step."""
        return next(opt.state.get(self.master[name], {}) for names, opt, _ in self.buckets if name in names)

    def reduce(self, world: World) -> None:
        """Sum gradients over ranks; a rank whose share was empty takes part with zeros."""
        if world.size == 1:
            return
        for name, parameter in self.compute.items():
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
        norms = [
            torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32))
            for name in group.parameters
            if (g := self.gradient(name)) is not None
        ]
        return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0

    @torch.no_grad()
    def step(self, scales: Sequence[float], factor: float) -> None:
        """Move the masters, then the model.

        Args:
            scales: of each group's gradient.
            factor: of the optimiser's learning rate, on top of each group's own.
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
            for settings in optimizer.param_groups:
                settings["lr"] = optimizer.defaults["lr"] * rate
            optimizer.step()
            for name in names:
                self.master[name].grad = None
                self.compute[name].grad = None
                self.sums.forget(self.compute[name])
                if self._narrow(name):
                    rounding.round(self.master[name], self.compute[name])

    def clear(self) -> None:
        """Forget all gradients."""
        for parameter in self.compute.values():
            parameter.grad = None
            self.sums.forget(parameter)

    def state(self) -> dict[str, Tensor]:
        """MasterWeights and optimiser state as named tensors."""
        tensors = {f"master/{name}": master.detach() for name, master in self.master.items()}
        tensors["roundings"] = torch.tensor(self.roundings)
        for names, optimizer, _ in self.buckets:
            for name in names:
                for key, value in optimizer.state.get(self.master[name], {}).items():
                    tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state` gave, bit for bit."""
        self.roundings = int(tensors.get("roundings", 0))
        rounding = Rounding(self.roundings)
        for names, optimizer, _ in self.buckets:
            for name in names:
                master = self.master[name]
                master.copy_(tensors[f"master/{name}"])
                if self._narrow(name):
                    rounding.round(master, self.compute[name])
                for label, value in tensors.items():
                    if label.startswith("optimizer/") and label.endswith(f"/{name}"):
                        key = label.split("/")[1]
                        if label == f"optimizer/{key}/{name}":
                            optimizer.state[master][key] = value.to(master.device).clone()


class Rounding:
    """From float32 to bfloat16 at random, so that the expected value is that in float32: the same for the same index.

    Weights are to be rounded in one order; what bfloat16 holds exactly stays. Other types round to the nearest.
    """

    def __init__(self, index: int):
        self._index = index
        self._drawn: Tensor | None = None
        self._used = 0

    def round(self, wide: Tensor, narrow: Tensor) -> None:
        """Overwrite `narrow` with `wide`, of the same shape."""
        if narrow.dtype != torch.bfloat16 or wide.dtype != torch.float32:
            narrow.copy_(wide)
            return
        if self._drawn is None:
            generator = torch.Generator().manual_seed(self._index)
            self._drawn = torch.randint(0, 2**16, (DRAWN,), dtype=torch.int32, generator=generator)
        self._drawn = self._drawn.to(wide.device)
        source, target = wide.detach().reshape(-1), narrow.detach().reshape(-1)
        start = 0
        while start < len(source):
            piece = slice(start, min(len(source), start + DRAWN - self._used))
            drawn = self._drawn[self._used : self._used + piece.stop - start]
            # A carry out of the 16 bits that bfloat16 drops is a step to the next value; the rest is cut off.
            bits = (source[piece].view(torch.int32) + drawn).bitwise_and_(-(2**16))
            target[piece] = bits.view(torch.float32)
            self._used = (self._used + len(drawn)) % DRAWN
            start = piece.stop
        if target.data_ptr() != narrow.data_ptr():
            narrow.copy_(target.view(narrow.shape))


def _master(parameter: nn.Parameter) -> nn.Parameter:
    if parameter.dtype in (torch.float32, torch.float64):
        return parameter
    return nn.Parameter(parameter.detach().float(), requires_grad=True)
