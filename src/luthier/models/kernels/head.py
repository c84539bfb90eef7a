"""The head: from hidden states to per-token values without ever holding [B,T,V].

`Head.sum` computes the gradient chunk by chunk inside the forward, so no logits are kept;
`Head.map` gives differentiable per-token values: so does it where the head is frozen, else it makes the logits again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from luthier.errors import RecipeError
from luthier.models.kernels.gradients import add, add_in_blocks, add_product, may_add
from luthier.models.wide import wide_dtype

CHUNK_BYTES = {"cpu": 48 * 2**20, "cuda": 512 * 2**20}
"""Size of one chunk's logits in the accumulation type. Smaller loses to overhead, larger to memory.

On a GPU a chunk is some kernels, and the gradient of the output embedding is added to once a chunk: 48 MiB would be
96 positions of 128,000 tokens. That size is reasoned, not measured.
"""
CACHED_BYTES = 8 * 2**20
"""On a processor a chunk's logits go through the function in blocks of rows of this size in the accumulation type.

What the function makes of a block is then still in the cache, and nothing but the logits, overwritten by their
gradient, has the size of a chunk. Of 2 to 16 MiB all are as fast, but 8 where a reference's head is read for each.
(An output embedding that is no plain linear layer is differentiated by autograd, a whole chunk at a time.)
"""
COLUMNS, LARGE = 1024, 8192
"""On a processor a LARGE vocabulary's logits are made by products of so many tokens each, where there are several
positions: with MKL on AMD they then take 0.6 to 0.9 of the time of one product (2 to 248 positions of 49,152 to
128,256 tokens), the same bits but for odd sizes. One position is faster in one product."""


@dataclass(frozen=True)
class Head:
    """Output embedding (adapter included), then scale, soft cap and temperature, all in fp32 or wider.

    logits = softcap * tanh(scale * output(hidden) / softcap) / temperature
    """

    output: nn.Module
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [n,D] → logits [n,V], float32 (float64 stays float64)."""
        return self.shaped(self.product(hidden))

    def product(self, hidden: Tensor) -> Tensor:
        """What the output embedding makes of hidden states [n,D]: [n,V]."""
        output = self.output
        if torch.is_grad_enabled() or not self.plain or output.bias is not None or hidden.dtype != torch.float32:
            return output(hidden)
        large = hidden.dim() == 2 and len(hidden) > 1 and vocabulary_of(output) >= LARGE
        if not large or hidden.device.type != "cpu":
            return output(hidden)
        weight: Any = output.weight
        product = hidden.new_empty(len(hidden), len(weight))
        for start in range(0, len(weight), COLUMNS):
            piece = slice(start, start + COLUMNS)
            torch.mm(hidden, weight[piece].T, out=product[:, piece])
        return product

    def shaped(self, logits: Tensor) -> Tensor:
        """Scale, soft cap and temperature, value by value."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits if self.temperature == 1.0 else logits / self.temperature

    def chunks(self, hidden: Tensor) -> list[slice]:
        """Equal slices of the N positions whose logits take about CHUNK_BYTES each."""
        positions = len(hidden)
        vocabulary = vocabulary_of(self.output)
        most = max(1, chunk_bytes(hidden.device) // (vocabulary * max(4, hidden.element_size())))
        pieces = max(1, -(-positions // most))
        size = -(-positions // pieces) if positions else 1
        return [slice(start, min(start + size, positions)) for start in range(0, positions, size)]

    @property
    def plain(self) -> bool:
        """Whether the output embedding is a linear layer and nothing else."""
        hooks = (self.output._forward_hooks, self.output._forward_pre_hooks, self.output._backward_hooks)
        return type(self.output) is nn.Linear and not any(hooks)

    @property
    def linear(self) -> tuple[Tensor, Tensor | None, float] | None:
        """(weight [V,D], bias, factor) if logits are factor · (hidden weight^T + bias); None if more lies between."""
        if type(self.output) is not nn.Linear or self.softcap is not None:
            return None
        return self.output.weight, self.output.bias, self.scale / self.temperature

    def vocabulary(self, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Logits of all N positions in pieces of the vocabulary, [N,v] of about CHUNK_BYTES each; no gradient.

        An output embedding that is no plain linear layer is applied as a whole, and its logits are cut.
        """
        output, size = self.output, vocabulary_of(self.output)
        most = max(1, chunk_bytes(hidden.device) // (max(1, len(hidden)) * max(4, hidden.element_size())))
        plain = output if type(output) is nn.Linear else None
        whole = self.logits(hidden) if plain is None else hidden
        for start in range(0, size, most):
            piece = slice(start, min(start + most, size))
            if plain is None:
                yield piece, whole[:, piece]
            else:
                bias = None if plain.bias is None else plain.bias[piece]
                yield piece, self.shaped(nn.functional.linear(hidden, plain.weight[piece], bias))

    def sum(self, hidden: Tensor, function: Callable[[slice, Tensor], Tensor]) -> Tensor:
        """Sum over all N positions of `function(slice, logits [n,V]) → [n]`, as a differentiable scalar.

        Gradients with respect to `hidden` and the head's own parameters are computed here, and scaled in the backward:
        one pass, no logits kept, no recomputation. The function gets a few positions at a time; their logits are
        overwritten once it has returned, so what it keeps of them it must clone.
        """
        parameters = self._asking(hidden)
        if parameters is None:
            return self._values(hidden, function).sum()
        return _ChunkedSum.apply(self, function, hidden, *parameters)

    def map(self, hidden: Tensor, function: Callable[[slice, Tensor], Tensor]) -> Tensor:
        """Differentiable values [N] of `function(slice, logits [n,V]) → [n]`, each of its own position's logits alone.

        The gradient of a position's value is a row [D] that what follows can only scale. Where the head is frozen it is
        computed here, and nothing is computed again; else the backward calls the function again. Logits are overwritten
        as in `sum`.

        Raises:
            RecipeError: the function gives other shapes, or reads a tensor that is trained itself.
        """
        parameters = self._asking(hidden)
        if parameters is None:
            return self._values(hidden, function)
        if parameters and not self.plain:  # a module may draw random numbers, which torch's checkpoint draws again
            whole = [checkpoint(self._piece, function, s, hidden[s], use_reentrant=False) for s in self.chunks(hidden)]
            return torch.cat(whole) if whole else hidden.sum(-1).float()
        return _ChunkedMap.apply(self, _alone(function), hidden, *parameters)

    def _asking(self, hidden: Tensor) -> list[nn.Parameter] | None:
        """The head's parameters that ask for a gradient; None if nothing does."""
        parameters = [p for p in self.output.parameters() if p.requires_grad]
        return parameters if torch.is_grad_enabled() and (hidden.requires_grad or parameters) else None

    def _piece(self, function: Callable[[slice, Tensor], Tensor], piece: slice, hidden: Tensor) -> Tensor:
        return _asked(function, piece, self.logits(hidden))

    @torch.no_grad()
    def _values(self, hidden: Tensor, function: Callable[[slice, Tensor], Tensor]) -> Tensor:
        """Values [N] of the function, without gradient."""
        values = [torch.zeros(0, dtype=wide_dtype(hidden.dtype), device=hidden.device)]
        for piece in self.chunks(hidden):
            raw = self.product(hidden[piece])
            values += [_asked(function, _within(piece, rows), self.shaped(raw[rows])).clone() for rows in _cached(raw)]
            del raw  # before the next chunk's logits are made
        return torch.cat(values)


def chunk_bytes(device: torch.device) -> int:
    """CHUNK_BYTES of a device's kind; the processor's for a kind that is not listed."""
    return CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"])


def vocabulary_of(output: nn.Module) -> int:
    """V of an output embedding, an adapter around it included."""
    weight = output.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]


class _ChunkedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, head: Head, function: Any, hidden: Tensor, *parameters: Tensor) -> Tensor:
        values, ctx.late, hidden_gradient, gradients = _differentiated(head, function, hidden, parameters)
        ctx.save_for_backward(hidden, hidden_gradient, *gradients)
        ctx.parameters = parameters
        return values.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, hidden_gradient, *gradients = ctx.saved_tensors
        factor = float(outer[0]) if ctx.parameters else 0.0
        given = _scaled(ctx.parameters, ctx.late, gradients, hidden, factor)
        return None, None, hidden_gradient * outer[0].to(hidden_gradient.dtype), *given


class _ChunkedMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, head: Head, function: Any, hidden: Tensor, *parameters: Tensor) -> Tensor:
        ctx.head, ctx.function, ctx.parameters = head, function, parameters
        if parameters:
            ctx.save_for_backward(hidden)
            return head._values(hidden, function)
        values, _, hidden_gradient, _ = _differentiated(head, function, hidden, ())
        ctx.save_for_backward(hidden_gradient)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (kept,), (factors,) = ctx.saved_tensors, outer
        if not ctx.parameters:
            return None, None, kept * factors[:, None].to(kept.dtype)

        def scaled(piece: slice, logits: Tensor) -> Tensor:
            return ctx.function(piece, logits) * factors[piece]

        _, late, hidden_gradient, gradients = _differentiated(ctx.head, scaled, kept, ctx.parameters)
        return None, None, hidden_gradient, *_scaled(ctx.parameters, late, gradients, kept, 1.0)


def _differentiated(
    head: Head, function: Any, hidden: Tensor, parameters: Sequence[Tensor]
) -> tuple[Tensor, bool, Tensor, list[Tensor]]:
    """Values [N], `late`, and the gradients of their sum to `hidden` [N,D] and, in a wide type, to the parameters.

    `late`: instead of the latter, the slopes [n,V] of each chunk's logits, from which `_scaled` makes them. Those of
    few positions take less than a weight's gradient [V,D], which the backward can add to.
    """
    wide = wide_dtype(hidden.dtype)
    values, hidden_gradient = [torch.zeros(0, dtype=wide, device=hidden.device)], torch.zeros_like(hidden)
    overwritten = head.plain and len(hidden) > 0  # by the first chunk: zeros of this size take time
    empty = torch.empty_like if overwritten else torch.zeros_like
    late = overwritten and bool(parameters) and len(hidden) <= hidden.shape[-1]
    gradients = [] if late else [empty(p, dtype=wide) for p in parameters]
    for piece in head.chunks(hidden):
        part = hidden[piece]
        if head.plain:
            found, hidden_gradient[piece], slope = _through_linear(head, function, piece, part)
            if late:
                gradients.append(slope)
            else:
                _add_to(gradients, slope, part, first=piece.start == 0)
            del slope  # before the next chunk's logits are made
        else:
            found, hidden_gradient[piece] = _through_module(head, function, piece, part, parameters, gradients)
        values.append(found)
    return torch.cat(values), late, hidden_gradient, gradients


def _scaled(
    parameters: Sequence[Tensor], late: bool, gradients: Sequence[Tensor], hidden: Tensor, factor: float
) -> list[Tensor | None]:
    """The gradients of `_differentiated`, times the factor, to the parameters; None where one was added to."""
    if late:
        return [_of_slopes(p, gradients, hidden, factor) for p in parameters]
    return [add(p, g, factor) for p, g in zip(parameters, gradients, strict=True)]


def _asked(function: Any, positions: slice, logits: Tensor) -> Tensor:
    """The function's values [n]."""
    values = function(positions, logits)
    if values.shape != logits.shape[:1]:
        raise RecipeError(f"A function of logits returned {tuple(values.shape)}; one value per position is needed.")
    return values


def _alone(function: Any) -> Callable[[slice, Tensor], Tensor]:
    """The function, refusing what a gradient per position cannot say."""

    def checked(piece: slice, logits: Tensor) -> Tensor:
        values = function(piece, logits)
        if _trained_leaves(values) - _trained_leaves(logits):
            raise RecipeError("A function of head.map reads a trained tensor other than the logits: use it outside.")
        return values

    return checked


def _trained_leaves(tensor: Tensor) -> set[int]:
    """Ids of the leaves that a tensor's gradient flows to."""
    found, open_nodes, seen = set(), [tensor.grad_fn], set()
    if tensor.is_leaf and tensor.requires_grad:
        found.add(id(tensor))
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(id(leaf))
        open_nodes += [after for after, _ in node.next_functions]
    return found


def _through_module(
    head: Head, function: Any, piece: slice, hidden: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Values [n] of one chunk, and the gradient of their sum to `hidden`; that to the parameters is added to theirs."""
    with torch.enable_grad():
        part = hidden.detach().requires_grad_()
        values = _asked(function, piece, head.logits(part))
        slope, *rest = torch.autograd.grad(values.sum(), [part, *parameters], materialize_grads=True)
    for whole, one in zip(gradients, rest, strict=True):
        whole += one
    return values.detach(), slope


def _through_linear(head: Head, function: Any, piece: slice, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values [n] of one chunk of a plain linear layer, and the gradients of their sum to `hidden` and logits [n,V]."""
    raw, values = head.product(hidden), []
    for rows in _cached(raw):
        block = raw[rows].requires_grad_()
        with torch.enable_grad():
            found = _asked(function, _within(piece, rows), head.shaped(block))
            (slope,) = torch.autograd.grad(found.sum(), [block], materialize_grads=True)
        values.append(found.detach().clone())  # it may be a view of what is overwritten
        if len(slope) == len(raw):
            raw = slope
        else:
            block.detach().copy_(slope)
    return torch.cat(values), raw @ head.output.weight, raw  # pyright: ignore[reportOperatorIssue]


def _within(piece: slice, rows: slice) -> slice:
    """Rows of a chunk as positions of the whole."""
    return slice(piece.start + rows.start, piece.start + rows.stop)


def _cached(logits: Tensor) -> list[slice]:
    """Slices of the rows of logits [n,V]: of CACHED_BYTES each on a processor, one elsewhere."""
    rows = len(logits)
    if logits.device.type == "cpu":
        rows = min(rows, max(1, CACHED_BYTES // (logits.shape[-1] * max(4, logits.element_size()))))
    return [slice(start, min(start + rows, len(logits))) for start in range(0, len(logits), rows)]


def _add_to(gradients: Sequence[Tensor], slope: Tensor, hidden: Tensor, *, first: bool) -> None:
    """Add a chunk's share of the gradients of weight [V,D] and bias [V]; the first overwrites what is there."""
    for whole in gradients:
        if whole.dim() == 2:
            add_in_blocks(whole, slope, hidden, first=first)
        else:
            found = slope.sum(0)
            whole.copy_(found) if first else whole.add_(found)


def _of_slopes(parameter: Tensor, slopes: Sequence[Tensor], hidden: Tensor, factor: float) -> Tensor | None:
    """A weight's or bias's gradient times the factor, or None where it was added to the one that the parameter has."""
    if parameter.dim() == 1:
        return add(parameter, torch.stack([slope.sum(0) for slope in slopes]).sum(0), factor)
    if not may_add(parameter):
        slopes = [torch.cat(list(slopes))]
    parts = hidden.split([len(slope) for slope in slopes])
    return [add_product(parameter, slope, part, factor) for slope, part in zip(slopes, parts, strict=True)][-1]


class TargetLogProb(torch.autograd.Function):
    """log softmax(logits)[target]: the forward keeps one [n,V] tensor, the backward makes one instead of three.

    torch's softmax takes half as long as its logsumexp and leaves the backward no exponential to compute; the
    normaliser follows from the largest logit, whose probability is 1 / Σ exp(logit - largest).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        probabilities = torch.softmax(logits, dim=-1)
        normaliser = logits.amax(-1) - probabilities.amax(-1).log()
        ctx.save_for_backward(probabilities, targets)
        return logits.gather(-1, targets[:, None])[:, 0] - normaliser

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        probabilities, targets = ctx.saved_tensors
        gradient = probabilities * -outer[0][:, None]
        return gradient.scatter_add_(-1, targets[:, None], outer[0][:, None]), None


def target_logprob(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target: logits [n,V], targets [n] → [n]."""
    return TargetLogProb.apply(logits, targets)
