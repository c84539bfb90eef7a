"""The head: from hidden states to per-token values without ever holding [B,T,V].

`Head.sum` computes the gradient chunk by chunk inside the forward, so no logits are kept. `Head.map` gives
differentiable per-token values: a frozen head's gradient is computed in the forward too, a trained head's logits are
computed again in the backward.
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

LogitsFunction = Callable[[slice, Tensor], Tensor]
"""(positions, their logits [n,V]) → one value per position, [n]."""

CHUNK_BYTES = {"cpu": 48 * 2**20, "cuda": 512 * 2**20}
"""Size of one chunk's logits in the accumulation type. Smaller loses to overhead, larger to memory.

On a GPU a chunk is a few kernels, and each chunk adds to the gradient of the output embedding once: 48 MiB would be
96 positions of 128,000 tokens. The GPU's size is reasoned, not measured.
"""
CACHED_BYTES = 8 * 2**20
"""On a processor a chunk's logits go through the function in blocks of rows of this size in the accumulation type.

What the function computes from a block is then still in the cache, and only the logits, which their gradient
overwrites, have the size of a chunk. All sizes from 2 to 16 MiB are as fast, but 8 MiB is fastest where a reference's
head is read for each block. (Autograd differentiates any other output embedding, a whole chunk at a time.)
"""
COLUMNS, LARGE = 1024, 8192
"""On a processor the logits of a LARGE vocabulary are computed by products of COLUMNS tokens each, for two or more
positions: with MKL on AMD these take 0.6 to 0.9 of the time of one product (2 to 248 positions of 49,152 to
128,256 tokens), with the same bits but for odd sizes. For a single position one product is faster."""


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
        """The output embedding's own output for hidden states [n,D]: [n,V], before scale, soft cap and temperature."""
        output = self.output
        if torch.is_grad_enabled() or not self.is_plain_linear or output.bias is not None:
            return output(hidden)
        large = hidden.dim() == 2 and len(hidden) > 1 and vocabulary_of(output) >= LARGE
        if not large or hidden.dtype != torch.float32 or hidden.device.type != "cpu":
            return output(hidden)
        weight: Any = output.weight
        product = hidden.new_empty(len(hidden), len(weight))
        for start in range(0, len(weight), COLUMNS):
            piece = slice(start, start + COLUMNS)
            torch.mm(hidden, weight[piece].T, out=product[:, piece])
        return product

    def shaped(self, logits: Tensor) -> Tensor:
        """Scale, soft cap and temperature, elementwise."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        # Each step is left out where it changes nothing: it would copy a whole chunk, and save it for a backward.
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits if self.temperature == 1.0 else logits / self.temperature

    def chunks(self, hidden: Tensor) -> list[slice]:
        """Equal slices of the N positions whose logits take about CHUNK_BYTES each."""
        positions = len(hidden)
        vocabulary = vocabulary_of(self.output)
        # The function works in float32 or wider, so a bfloat16 chunk counts with four bytes per logit.
        most = max(1, chunk_bytes(hidden.device) // (vocabulary * max(4, hidden.element_size())))
        pieces = max(1, -(-positions // most))
        # Equal sizes: a short last chunk would pay a chunk's overhead for a few positions.
        size = -(-positions // pieces) if positions else 1
        return [slice(start, min(start + size, positions)) for start in range(0, positions, size)]

    @property
    def is_plain_linear(self) -> bool:
        """Whether the output embedding is a linear layer, without an adapter and without hooks."""
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

        An output embedding that is no plain linear layer is applied once, and its logits are cut.
        """
        output, size = self.output, vocabulary_of(self.output)
        most = max(1, chunk_bytes(hidden.device) // (max(1, len(hidden)) * max(4, hidden.element_size())))
        layer = output if type(output) is nn.Linear else None
        # Only a linear layer's weight can be cut by tokens; an adapter on it has products of its own.
        all_logits = self.logits(hidden) if layer is None else hidden
        for start in range(0, size, most):
            piece = slice(start, min(start + most, size))
            if layer is None:
                yield piece, all_logits[:, piece]
            else:
                bias = None if layer.bias is None else layer.bias[piece]
                yield piece, self.shaped(nn.functional.linear(hidden, layer.weight[piece], bias))

    def sum(self, hidden: Tensor, function: LogitsFunction) -> Tensor:
        """Sum over all N positions of `function(slice, logits [n,V]) → [n]`, as a differentiable scalar.

        Gradients with respect to `hidden` and the head's own parameters are computed here, and scaled in the backward:
        one pass, no logits kept, no recomputation. The function gets a few positions at a time. Their logits are
        overwritten once it has returned, so it must clone what it keeps of them.

        Raises:
            RecipeError: the function returns another shape.
        """
        parameters = self._trained_parameters(hidden)
        if parameters is None:
            return self._values(hidden, function).sum()
        return _ChunkedSum.apply(self, function, hidden, *parameters)

    def map(self, hidden: Tensor, function: LogitsFunction) -> Tensor:
        """Differentiable values [N] of `function(slice, logits [n,V]) → [n]`, each of its own position's logits alone.

        A position's value has the gradient row [D], which the loss can only scale. A frozen head's rows are computed
        here, and nothing is computed again; for a trained head the backward calls the function again. Logits are
        overwritten as in `sum`.

        Raises:
            RecipeError: the function returns another shape, or reads a tensor that is trained itself.
        """
        parameters = self._trained_parameters(hidden)
        if parameters is None:
            return self._values(hidden, function)
        if parameters and not self.is_plain_linear:
            # A module may draw random numbers (dropout of an adapter), which torch's checkpoint draws again.
            values = []
            for piece in self.chunks(hidden):
                values.append(checkpoint(self._chunk_values, function, piece, hidden[piece], use_reentrant=False))
            return torch.cat(values) if values else hidden.sum(-1).float()
        return _ChunkedMap.apply(self, _refusing_trained_tensors(function), hidden, *parameters)

    def _trained_parameters(self, hidden: Tensor) -> list[nn.Parameter] | None:
        """The head's parameters that need a gradient, perhaps none; None if `hidden` needs none either."""
        parameters = [p for p in self.output.parameters() if p.requires_grad]
        return parameters if torch.is_grad_enabled() and (hidden.requires_grad or parameters) else None

    def _chunk_values(self, function: LogitsFunction, piece: slice, hidden: Tensor) -> Tensor:
        return _checked_values(function, piece, self.logits(hidden))

    @torch.no_grad()
    def _values(self, hidden: Tensor, function: LogitsFunction) -> Tensor:
        """Values [N] of the function, without gradient."""
        values = [torch.zeros(0, dtype=wide_dtype(hidden.dtype), device=hidden.device)]
        for piece in self.chunks(hidden):
            raw = self.product(hidden[piece])
            for rows in _blocks_in_cache(raw):
                positions = slice(piece.start + rows.start, piece.start + rows.stop)
                # Cloned: the values may be a view of the logits, and would keep a whole chunk of them alive.
                values.append(_checked_values(function, positions, self.shaped(raw[rows])).clone())
            del raw  # before the next chunk's logits are computed: one chunk is alive at a time
        return torch.cat(values)


def chunk_bytes(device: torch.device) -> int:
    """CHUNK_BYTES of a device's kind; the processor's for a kind that is not listed."""
    return CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"])


def vocabulary_of(output: nn.Module) -> int:
    """V of an output embedding, also of one with an adapter on it."""
    weight = output.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]


class _ChunkedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, head: Head, function: LogitsFunction, hidden: Tensor, *parameters: Tensor) -> Tensor:
        computed = _differentiated(head, function, hidden, parameters)
        ctx.of_logits, ctx.parameters = computed.of_logits, parameters
        ctx.save_for_backward(hidden, computed.grad_hidden, *computed.gradients)
        return computed.values.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads_out: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, grad_hidden, *gradients = ctx.saved_tensors
        # Only a trained head needs the factor as a number, which on a GPU waits for the forward.
        factor = float(grads_out[0]) if ctx.parameters else 0.0
        grads = _parameter_grads(ctx.parameters, gradients, hidden, factor, of_logits=ctx.of_logits)
        return None, None, grad_hidden * grads_out[0].to(grad_hidden.dtype), *grads


class _ChunkedMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, head: Head, function: LogitsFunction, hidden: Tensor, *parameters: Tensor) -> Tensor:
        ctx.head, ctx.function, ctx.parameters = head, function, parameters
        if parameters:
            # A weight's gradient mixes the positions, whose factors only the backward knows: compute it there.
            ctx.save_for_backward(hidden)
            return head._values(hidden, function)
        computed = _differentiated(head, function, hidden, ())
        ctx.save_for_backward(computed.grad_hidden)
        return computed.values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads_out: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_values,) = grads_out
        if not ctx.parameters:
            (grad_hidden,) = ctx.saved_tensors
            return None, None, grad_hidden * grad_values[:, None].to(grad_hidden.dtype)
        (hidden,) = ctx.saved_tensors

        def weighted(piece: slice, logits: Tensor) -> Tensor:
            return ctx.function(piece, logits) * grad_values[piece]

        computed = _differentiated(ctx.head, weighted, hidden, ctx.parameters)
        grads = _parameter_grads(ctx.parameters, computed.gradients, hidden, 1.0, of_logits=computed.of_logits)
        return None, None, computed.grad_hidden, *grads


@dataclass(frozen=True)
class _Differentiated:
    """Values [N] of a function of the logits, and gradients of their sum.

    Attributes:
        grad_hidden: with respect to the hidden states, [N,D].
        gradients: with respect to the head's parameters, in float32 or wider.
        of_logits: `gradients` holds the gradient [n,V] of each chunk's logits instead.
    """

    values: Tensor
    grad_hidden: Tensor
    gradients: list[Tensor]
    of_logits: bool


def _differentiated(
    head: Head, function: LogitsFunction, hidden: Tensor, parameters: Sequence[Tensor]
) -> _Differentiated:
    """Forward and backward of the head and the function, chunk by chunk.

    With few positions (N <= D) the gradient of the logits is kept, and the backward forms the weight's gradient [V,D]:
    N·V numbers are fewer, and the product can then add to the weight's gradient of earlier micro-batches directly.
    """
    wide = wide_dtype(hidden.dtype)
    values = [torch.zeros(0, dtype=wide, device=hidden.device)]
    grad_hidden = torch.zeros_like(hidden)
    linear = head.is_plain_linear and len(hidden) > 0
    of_logits = linear and bool(parameters) and len(hidden) <= hidden.shape[-1]
    # The first chunk overwrites a linear layer's gradients: to write zeros of this size first takes time.
    new = torch.empty_like if linear else torch.zeros_like
    gradients = [] if of_logits else [new(p, dtype=wide) for p in parameters]
    for piece in head.chunks(hidden):
        part = hidden[piece]
        if not linear:
            chunk_values, grad_hidden[piece] = _through_module(head, function, piece, part, parameters, gradients)
            values.append(chunk_values)
            continue
        chunk_values, grad_hidden[piece], grad_logits = _through_linear(head, function, piece, part)
        values.append(chunk_values)
        if of_logits:
            gradients.append(grad_logits)
        else:
            _add_chunk(gradients, grad_logits, part, overwrite=piece.start == 0)
        del grad_logits  # before the next chunk's logits are computed: one chunk is alive at a time
    return _Differentiated(torch.cat(values), grad_hidden, gradients, of_logits)


def _through_linear(
    head: Head, function: LogitsFunction, piece: slice, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Values [n] of one chunk of a plain linear layer, and the gradients of their sum: to `hidden`, to the logits.

    A function of its own, so that the logits' last references are gone when it returns.
    """
    raw, values = head.product(hidden), []
    for rows in _blocks_in_cache(raw):
        block = raw[rows].requires_grad_()
        positions = slice(piece.start + rows.start, piece.start + rows.stop)
        with torch.enable_grad():
            block_values = _checked_values(function, positions, head.shaped(block))
            (grad_block,) = torch.autograd.grad(block_values.sum(), [block], materialize_grads=True)
        values.append(block_values.detach().clone())  # may be a view of the logits, which are overwritten next
        if len(grad_block) == len(raw):
            raw = grad_block  # one block is the whole chunk: nothing to copy
        else:
            block.detach().copy_(grad_block)
    return torch.cat(values), raw @ head.output.weight, raw  # pyright: ignore[reportOperatorIssue]


def _through_module(
    head: Head,
    function: LogitsFunction,
    piece: slice,
    hidden: Tensor,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Values [n] of one chunk, and the gradient of their sum to `hidden`; those to the parameters are added."""
    with torch.enable_grad():
        part = hidden.detach().requires_grad_()
        values = _checked_values(function, piece, head.logits(part))
        grad_hidden, *chunk_grads = torch.autograd.grad(values.sum(), [part, *parameters], materialize_grads=True)
    for total, chunk_grad in zip(gradients, chunk_grads, strict=True):
        total += chunk_grad
    return values.detach(), grad_hidden


def _add_chunk(gradients: Sequence[Tensor], grad_logits: Tensor, hidden: Tensor, *, overwrite: bool) -> None:
    """Add a chunk's share to the gradients of weight [V,D] and bias [V], or overwrite them with it."""
    for gradient in gradients:
        if gradient.dim() == 2:
            add_in_blocks(gradient, grad_logits, hidden, overwrite=overwrite)
        elif overwrite:
            gradient.copy_(grad_logits.sum(0))
        else:
            gradient.add_(grad_logits.sum(0))


def _parameter_grads(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], hidden: Tensor, factor: float, *, of_logits: bool
) -> list[Tensor | None]:
    """Gradients of the parameters for autograd, times the factor; None where it was added to `.grad` directly.

    Args:
        gradients: of the parameters, or with `of_logits` those [n,V] of each chunk's logits.
    """
    if of_logits:
        return [_grad_from_logits(p, gradients, hidden, factor) for p in parameters]
    return [add(p, gradient, factor) for p, gradient in zip(parameters, gradients, strict=True)]


def _grad_from_logits(parameter: Tensor, grads: Sequence[Tensor], hidden: Tensor, factor: float) -> Tensor | None:
    """One parameter's gradient from the gradients [n,V] of each chunk's logits, as `_parameter_grads` gives it."""
    if parameter.dim() == 1:
        return add(parameter, torch.stack([grad.sum(0) for grad in grads]).sum(0), factor)
    if not may_add(parameter):
        # One product, whose output autograd takes: a product per chunk would need a sum of its own.
        return add_product(parameter, torch.cat(list(grads)), hidden, factor)
    product = None
    for grad, part in zip(grads, hidden.split([len(grad) for grad in grads]), strict=True):
        product = add_product(parameter, grad, part, factor)
    return product


def _checked_values(function: LogitsFunction, positions: slice, logits: Tensor) -> Tensor:
    """The function's values, refused unless they are [n]: a broadcast shape would sum to a wrong loss unnoticed."""
    values = function(positions, logits)
    if values.shape != logits.shape[:1]:
        raise RecipeError(f"A function of logits returned {tuple(values.shape)}; one value per position is needed.")
    return values


def _refusing_trained_tensors(function: LogitsFunction) -> LogitsFunction:
    """The function, refusing values that depend on a trained tensor besides the logits.

    `head.map` carries one gradient row per position, with respect to `hidden`: any other gradient would be lost.
    """

    def checked(piece: slice, logits: Tensor) -> Tensor:
        values = function(piece, logits)
        if _trained_leaves(values) - _trained_leaves(logits):
            raise RecipeError("A function of head.map reads a trained tensor other than the logits: use it outside.")
        return values

    return checked


def _trained_leaves(tensor: Tensor) -> set[int]:
    """Ids of the leaves that a tensor's gradient flows to, by a walk over autograd's graph."""
    leaves, open_nodes, visited = set(), [tensor.grad_fn], set()
    if tensor.is_leaf and tensor.requires_grad:
        leaves.add(id(tensor))
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        # Only the node that accumulates into a leaf has a `variable`.
        if (leaf := getattr(node, "variable", None)) is not None:
            leaves.add(id(leaf))
        open_nodes += [following for following, _ in node.next_functions]
    return leaves


def _blocks_in_cache(logits: Tensor) -> list[slice]:
    """Slices of the rows of logits [n,V]: of CACHED_BYTES each on a processor, one elsewhere."""
    rows = len(logits)
    if logits.device.type == "cpu":
        rows = min(rows, max(1, CACHED_BYTES // (logits.shape[-1] * max(4, logits.element_size()))))
    return [slice(start, min(start + rows, len(logits))) for start in range(0, len(logits), rows)]


class TargetLogProb(torch.autograd.Function):
    """log softmax(logits)[target]: the forward keeps one [n,V] tensor, the backward makes one instead of three.

    torch's softmax takes half as long as its logsumexp, and leaves the backward no exponential to compute. The
    normaliser follows from the largest logit, whose probability is 1 / Σ exp(logit - largest).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        probabilities = torch.softmax(logits, dim=-1)
        normaliser = logits.amax(-1) - probabilities.amax(-1).log()
        ctx.save_for_backward(probabilities, targets)
        return logits.gather(-1, targets[:, None])[:, 0] - normaliser

    @staticmethod
    def backward(ctx: Any, *grads_out: Tensor) -> tuple[Tensor, None]:
        # d log p(target) / d logits = onehot(target) - probabilities, per position.
        probabilities, targets = ctx.saved_tensors
        grad_values = grads_out[0][:, None]
        grad_logits = probabilities * -grad_values
        return grad_logits.scatter_add_(-1, targets[:, None], grad_values), None


def target_logprob(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target: logits [n,V], targets [n] → [n]."""
    return TargetLogProb.apply(logits, targets)
