"""The policy of a language model: hidden states at the targets, and the head over them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from luthier.errors import ModelError, RecipeError
from luthier.models.config import text_config
from luthier.models.kernels.head import Head
from luthier.types import Batch


class Policy(Protocol):
    """The interface of any model for engine, tuners and checkpoints: a module, and read-only references by name.

    `modality` decides which objectives can train it: "language", "contrastive", "diffusion".
    """

    modality: str
    module: nn.Module
    references: dict[str, Any]
    companions: dict[str, Companion]


@dataclass(frozen=True)
class Companion:
    """A module that an objective adds: trained with the model, checkpointed, saved in a file of its own.

    Attributes:
        module: if it maps hidden states [n,D] to numbers [n], a score pass can compute them as a stream of its name.
        rate: factor of the learning rate.
    """

    module: nn.Module
    rate: float = 1.0


class TokenPolicy:
    """A causal language model as objectives see it.

    `hidden(batch)` runs the model's outermost forward, so that adapters, prompts and hooks take part, and captures
    the input of its output embedding; the model's own logits are never computed.

    Args:
        temperature: divisor of the logits. The policy's distribution is the softmax at this temperature, so that
            losses and scores are of the distribution that samples are drawn from.

    Raises:
        RecipeError: `temperature` is not positive.
    """

    modality = "language"

    def __init__(self, module: nn.Module, temperature: float = 1.0):
        if temperature <= 0:
            raise RecipeError(
                f"A policy cannot be trained at temperature {temperature:g}: it always takes the likeliest token.",
                "Sample with generate.temperature=1.0, or any number above 0.",
            )
        self.module = module
        self.temperature = temperature
        self.ragged: Literal["padded", "even"] | None = None  # layout of rows of several lengths; None: not yet tried
        self.references: dict[str, Reference] = {}
        self.companions: dict[str, Companion] = {}

    @property
    def head(self) -> Head:
        config = text_config(self.module)
        scale = _number(config, "logit_scale") / _number(config, "logits_scaling")  # cohere, granite
        cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
        return Head(self.output, scale, cap, self.temperature)

    @property
    def output(self) -> nn.Module:
        """The output embedding."""
        return self.module.get_output_embeddings()  # pyright: ignore[reportCallIssue]

    def hidden(self, batch: Batch, embeddings: Tensor | None = None) -> Tensor:
        """Hidden states [N,D] from which the N targets of the batch are predicted, in `batch.targets()` order.

        Args:
            embeddings: [B,T,D], the model's input instead of `embed(batch.ids)`.
        """
        return self.states(batch, embeddings)[batch.before_targets()]

    def states(self, batch: Batch, embeddings: Tensor | None = None) -> Tensor:
        """Hidden states [B,T,D] at all positions of the batch, as `hidden`."""
        inputs = {"input_ids": batch.ids} if embeddings is None else {"inputs_embeds": embeddings}
        mask = batch.attention_mask if batch.prompts is None else self.mask_of_shared(batch)
        # Rows that begin at the first column are counted by the model itself: some count from another number than 0.
        counted = mask is None and len(batch.examples) == len(batch.ids)
        return self.input_of_head(inputs, mask, None if counted else batch.position_of)

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder's layers, in order.

        Raises:
            ModelError: the decoder holds no list of as many modules as its config has layers.
        """
        config = text_config(self.module)
        decoder: nn.Module = self.module.get_decoder()  # pyright: ignore[reportCallIssue]
        # Families name the list differently (`layers`, `h`, `blocks`); its length is in every config.
        for module in decoder.modules():
            if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
                return list(module)
        raise ModelError(f"The {config.num_hidden_layers} layers of {type(decoder).__name__} were not found.")

    @contextmanager
    def layer_outputs(self, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Collect the outputs [B,T,D] of these layers in the forward with gradient that runs inside.

        Forwards without gradient (of references) are not collected, nor is the recomputation of checkpointed layers,
        which runs in the backward.
        """
        outputs: dict[int, Tensor] = {}

        def collector(index: int) -> Callable[..., None]:
            def collect(_layer: nn.Module, _inputs: Any, output: Any) -> None:
                if torch.is_grad_enabled():
                    outputs[index] = output[0] if isinstance(output, tuple) else output

            return collect

        modules = self.layers
        handles = [modules[index].register_forward_hook(collector(index)) for index in layers]
        try:
            yield outputs
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def state_tuple(self) -> Iterator[dict[int, Tensor]]:
        """Collect transformers' tuple of hidden states [B,T,D] in the forward with gradient that runs inside.

        0 is the input of the first of K layers, 1 to K - 1 are outputs of layers, K is the output of the decoder: the
        last layer's behind the final norm.
        """
        states: dict[int, Tensor] = {}

        def embedded(_layer: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
            if torch.is_grad_enabled():
                states[0] = inputs[0] if inputs else named["hidden_states"]

        def finished(_decoder: nn.Module, _inputs: Any, output: Any) -> None:
            if torch.is_grad_enabled():
                states[len(modules)] = output[0]

        modules = self.layers
        decoder: nn.Module = self.module.get_decoder()  # pyright: ignore[reportCallIssue]
        handles = [
            modules[0].register_forward_pre_hook(embedded, with_kwargs=True),
            decoder.register_forward_hook(finished),
        ]
        try:
            with self.layer_outputs(range(len(modules) - 1)) as outputs:
                yield states
            states |= {index + 1: output for index, output in outputs.items()}
        finally:
            for handle in handles:
                handle.remove()

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of tokens [B,T] → [B,T,D], adapter and the model's own scale included."""
        return self.module.get_input_embeddings()(ids)  # pyright: ignore[reportCallIssue]

    def input_of_head(
        self, inputs: dict[str, Tensor], mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Hidden states [B,T,D] that enter the output embedding, from one forward of the model.

        Args:
            mask: None: the model's own.
            positions: [B,T]; None: the model's own.

        Raises:
            ModelError: the forward never calls the output embedding.
        """
        further = {"attention_mask": mask, "position_ids": positions}
        inputs = inputs | {name: tensor for name, tensor in further.items() if tensor is not None}
        with head_input(self.output) as captured:
            self.module(**inputs, use_cache=False)
        if not captured:
            raise ModelError(f"{type(self.module).__name__} does not compute its logits by its output embedding.")
        return captured[0]

    def mask_of_shared(self, batch: Batch) -> Tensor:
        """Additive mask [B,1,T,T] of a batch whose answers share prompts.

        0 where a position sees another (earlier ones of its own example, its row's prompt), else the lowest number.
        """
        assert batch.prompts is not None
        same = batch.example_of[:, :, None] == batch.example_of[:, None, :]
        visible = ((same | batch.prompts[:, None, :]) & (batch.example_of >= 0)[:, :, None]).tril()
        # Padding sees itself: a position that sees nothing has no softmax.
        visible = visible | torch.eye(visible.shape[1], dtype=torch.bool, device=visible.device)
        dtype = next(self.module.parameters()).dtype
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def _number(config: Any, name: str) -> float:
    """A number of the configuration; 1 where it has none: MPT's `logit_scale` may be a word, which its head ignores."""
    entry = getattr(config, name, None)
    return float(entry) if isinstance(entry, int | float) and entry else 1.0


class Reference:
    """A read-only policy: hidden states and logits without gradient, in eval mode, inside `scope`.

    Args:
        policy: the trained policy (`scope` then disables its tuner) or a frozen copy.
        scope: context in which the module is the reference.
    """

    def __init__(self, policy: TokenPolicy, scope: Callable[[], AbstractContextManager[Any]] = nullcontext):
        self.policy = policy
        self.scope = scope

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states [N,D] at the targets, as `TokenPolicy.hidden`."""
        with self._scoped():
            return self.policy.hidden(batch)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [n,D] → logits [n,V]."""
        head = self.policy.head
        # A frozen linear layer is the same inside the scope, whose walk over all modules costs more than a chunk.
        frozen_linear = type(head.output) is nn.Linear and not any(p.requires_grad for p in head.output.parameters())
        with torch.no_grad() if frozen_linear else self._scoped():
            return head.logits(hidden)

    @contextmanager
    def _scoped(self) -> Iterator[None]:
        with reading(self.policy.module), self.scope():
            yield


class HeadOnly(nn.Module):
    """The head of a model, as a frozen copy: all that a reference needs if its hidden states are in a cache."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.config = module.config
        self.output = copy.deepcopy(module.get_output_embeddings()).requires_grad_(False).eval()  # pyright: ignore

    def get_output_embeddings(self) -> nn.Module:
        return self.output


@contextmanager
def reading(module: nn.Module) -> Iterator[nn.Module]:
    """The module in eval mode without gradients; afterwards every submodule has its old mode."""
    # By module: `module.train()` afterwards would also wake parts that a user has frozen in eval mode.
    training = [submodule for submodule in module.modules() if submodule.training]
    for submodule in training:
        submodule.training = False
    try:
        with torch.no_grad():
            yield module
    finally:
        for submodule in training:
            submodule.training = True


@contextmanager
def head_input(output: nn.Module, skip: bool = True) -> Iterator[list[Tensor]]:
    """Capture the input [B,T,D] of the output embedding, whose own product over all positions is skipped.

    Args:
        skip: False: the model computes its logits as ever.
    """
    captured: list[Tensor] = []

    def capture(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        captured.append(inputs[0])
        if not skip:
            return inputs
        return (inputs[0][..., :0, :], *inputs[1:])  # no positions, so no logits [B,T,V]

    handle = output.register_forward_pre_hook(capture)
    try:
        yield captured
    finally:
        handle.remove()


def cast_inputs(module: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point inputs in the module's type; indices as they are."""
    dtype = next(module.parameters()).dtype
    return {name: values.to(dtype) if values.is_floating_point() else values for name, values in inputs.items()}
