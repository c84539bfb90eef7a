"""What the engine sees of a language model: hidden states at the targets, and the head over them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from luthier.errors import ModelError, RecipeError
from luthier.models.config import text_config
from luthier.models.kernels.head import Head
from luthier.types import Batch


class Policy(Protocol):
    """What engine, tuners and checkpoints see of any model: a module, and read-only references by name.

    `modality` says which objectives it serves: "language", "contrastive", "diffusion".
    """

    modality: str
    module: nn.Module
    references: dict[str, Any]
    companions: dict[str, Companion]


@dataclass(frozen=True)
class Companion:
    """A module that an objective brings: trained beside the model, checkpointed, saved apart, never part of the model.

    Attributes:
        module: where it turns hidden states [n,D] into numbers [n], a score pass gives them as a stream of its name.
        rate: factor of the learning rate.
    """

    module: nn.Module
    rate: float = 1.0


class TokenPolicy:
    """A causal language model as objectives see it.

    `hidden(batch)` runs the model's own outermost forward (so adapters, prompts and hooks all take
    part) and takes the input of its output embedding; the model's own logits are never computed.

    Args:
        temperature: what the head divides logits by. A policy that samples at a temperature is that
            softmax: its losses and scores are of the distribution that it draws from.
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
        self.references: dict[str, Reference] = {}
        self.companions: dict[str, Companion] = {}

    @property
    def head(self) -> Head:
        config = text_config(self.module)
        scale = float(getattr(config, "logit_scale", None) or 1.0)  # cohere
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # granite
        return Head(self.output, scale, getattr(config, "final_logit_softcapping", None), self.temperature)

    @property
    def output(self) -> nn.Module:
        """The output embedding."""
        return self.module.get_output_embeddings()  # pyright: ignore[reportCallIssue]

    def hidden(self, batch: Batch, embeddings: Tensor | None = None) -> Tensor:
        """Hidden states [N,D] from which the N targets of the batch are predicted, in `batch.targets()` order.

        Args:
            embeddings: [B,T,D], what the model reads in place of `embed(batch.ids)`.
        """
        inputs = {"input_ids": batch.ids} if embeddings is None else {"inputs_embeds": embeddings}
        mask = batch.attention_mask if batch.prompts is None else self.mask_of_shared(batch)
        return self.input_of_head(inputs, mask, batch.position_of)[batch.before_targets()]

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder's layers, in order.

        Raises:
            ModelError: no list of as many modules as the config has layers.
        """
        config = text_config(self.module)
        decoder: nn.Module = self.module.get_decoder()  # pyright: ignore[reportCallIssue]
        lists = (part for part in decoder.modules() if isinstance(part, nn.ModuleList))
        found = next((list(one) for one in lists if len(one) == config.num_hidden_layers), None)
        if found is None:
            raise ModelError(f"The {config.num_hidden_layers} layers of {type(decoder).__name__} were not found.")
        return found

    @contextmanager
    def layer_outputs(self, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Collect the outputs [B,T,D] of these layers in the forward with gradient that is run inside.

        Forwards without gradient (of references) are not collected; nor is what checkpointing computes again.
        """
        found: dict[int, Tensor] = {}

        def collector(index: int) -> Callable[..., None]:
            def collect(_layer: nn.Module, _inputs: Any, output: Any) -> None:
                if torch.is_grad_enabled():
                    found[index] = output[0] if isinstance(output, tuple) else output

            return collect

        modules = self.layers
        handles = [modules[index].register_forward_hook(collector(index)) for index in layers]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def state_tuple(self) -> Iterator[dict[int, Tensor]]:
        """Collect transformers' tuple of hidden states [B,T,D] in the forward with gradient that is run inside.

        0 is what the first of K layers reads, 1 to K - 1 the outputs of layers, K that of the decoder, which is the
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

    def input_of_head(self, inputs: dict[str, Tensor], mask: Tensor | None, positions: Tensor) -> Tensor:
        """Hidden states [B,T,D] that enter the output embedding, from one forward of the model's own."""
        with head_input(self.output) as captured:
            self.module(**inputs, attention_mask=mask, position_ids=positions, use_cache=False)
        return captured[0]

    def mask_of_shared(self, batch: Batch) -> Tensor:
        """[B,1,T,T], 0 where a position sees another (its own record so far, its row's prompt), else the lowest number.

        Padding sees itself, so that no position sees nothing.
        """
        assert batch.prompts is not None
        same = batch.example_of[:, :, None] == batch.example_of[:, None, :]
        seen = ((same | batch.prompts[:, None, :]) & (batch.example_of >= 0)[:, :, None]).tril()
        seen = seen | torch.eye(seen.shape[1], dtype=torch.bool, device=seen.device)
        dtype = next(self.module.parameters()).dtype
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


class Reference:
    """A read-only policy: hidden states and logits without gradient, in eval mode, inside `scope`.

    Args:
        policy: the trained policy (with `scope` switching its tuner off) or a frozen copy.
        scope: context under which the module is the reference.
    """

    def __init__(self, policy: TokenPolicy, scope: Callable[[], AbstractContextManager[Any]] = nullcontext):
        self.policy = policy
        self.scope = scope

    def hidden(self, batch: Batch) -> Tensor:
        """As TokenPolicy.hidden, [N,D]."""
        with self._scoped():
            return self.policy.hidden(batch)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [n,D] → logits [n,V]."""
        head = self.policy.head
        # A frozen plain linear layer is the same inside the scope, whose walk over all modules costs more than a chunk.
        plain = type(head.output) is nn.Linear and not any(p.requires_grad for p in head.output.parameters())
        with torch.no_grad() if plain else self._scoped():
            return head.logits(hidden)

    @contextmanager
    def _scoped(self) -> Iterator[None]:
        with reading(self.policy.module), self.scope():
            yield


class HeadOnly(nn.Module):
    """What a reference keeps of a model that training will change, where its hidden states are known: its head."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.config = module.config
        self.output = copy.deepcopy(module.get_output_embeddings()).requires_grad_(False).eval()  # pyright: ignore

    def get_output_embeddings(self) -> nn.Module:
        return self.output


@contextmanager
def reading(module: nn.Module) -> Iterator[nn.Module]:
    """The module in eval mode without gradients; every submodule returns to the mode that it was in."""
    training = [piece for piece in module.modules() if piece.training]
    for piece in training:
        piece.training = False
    try:
        with torch.no_grad():
            yield module
    finally:
        for piece in training:
            piece.training = True


@contextmanager
def head_input(output: nn.Module) -> Iterator[list[Tensor]]:
    """Capture what enters the output embedding, and give it nothing to multiply."""
    captured: list[Tensor] = []

    def take(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        captured.append(inputs[0])
        return (inputs[0][..., :0, :], *inputs[1:])

    handle = output.register_forward_pre_hook(take)
    try:
        yield captured
    finally:
        handle.remove()


def cast_inputs(module: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Real-valued inputs in the type the module computes in; indices as they are."""
    dtype = next(module.parameters()).dtype
    return {name: values.to(dtype) if values.is_floating_point() else values for name, values in inputs.items()}
