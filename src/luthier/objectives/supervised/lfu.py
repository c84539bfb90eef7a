"""LfU: hidden states should stay where they are when the model takes a step of gradient ascent on its loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.errors import RecipeError
from luthier.objectives.base import Objective, SequenceObjective, TokenObjective, total_of
from luthier.parts import lazy, part_field
from luthier.types import Batch, Term
from luthier.update import Update

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from luthier.models import context
    from luthier.models.kernels import head as heads
    from luthier.models.policy import TokenPolicy
    from luthier.objectives.supervised import _auxiliary as auxiliaries
else:
    torch = lazy("torch")
    context = lazy("luthier.models.context")
    heads = lazy("luthier.models.kernels.head")
    auxiliaries = lazy("luthier.objectives.supervised._auxiliary")


class LFU(Objective):
    """Learning from the undesirable: the base loss plus consistency under one step of gradient ascent.

    Per update: auxiliary parameters a, new ones (a low-rank addition to every linear, or a steering vector per layer)
    or the trained adapter itself; g = d base(a) / d a over the whole update; a takes the ascent step
    step_size · g / ||g||, the norm being over all of a. Then loss = base + coef · (1/TK) Σ_t Σ_l ||sg[h_lt] - h'_lt||²,
    h the outputs of the K layers without the step and h' with it, T the targets' own positions (`mask: all`: every
    position but each record's first). The step is a constant of the loss and is discarded afterwards; the trained
    weights get the second term's gradient through h' alone. `reduction` over the width: the paper's text and the
    released code have the mean, its equation the sum. `layers` take the step and are compared; `states: tuple`
    compares transformers' tuple of K + 1 states: the input of the first layer, and the last state after the final norm.
    Meters: `consistency`, `ascent_norm` ||g||, and `auxiliary_nll` (with the step), which must exceed `nll`.

    Raises: RecipeError at the start, where `base` changes the model's input or `trained` has no adapter.
    Source: arXiv 2511.13052, its text; the released code differs (docs/methods/lfu.md). There is one ascent per
    update, never one per micro-batch, so splitting an update does not change the gradient.
    """

    PAPER: ClassVar[str] = "arXiv 2511.13052"
    WHOLE_ROWS: ClassVar[bool] = True
    DETACHED: ClassVar = ("hidden states without the ascent step",)
    SETTINGS: ClassVar = (
        {},
        {"base": "dft"},
        {"coef": 1.0},
        {"step_size": 0.2},
        {"auxiliary": "steering"},
        {"auxiliary": "trained"},
        {"states": "tuple"},
        {"rank": 2},
        {"layers": "late"},
        {"reduction": "sum"},
        {"mask": "all"},
    )

    base: Annotated[Any, part_field("objective")] = Field(
        "sft",
        validate_default=True,
        description="Objective of the first term and of the ascent step: any over tokens or records, such as `sft` or "
        "`{kind: dft}`. One that changes the input, such as `ift`, is refused.",
    )
    coef: float | None = Field(
        None,
        ge=0.0,
        description="Factor of the consistency. Raising it holds the hidden states more firmly, learning less. null: 5,"
        " and 0.1 with `auxiliary: steering`, the values of the paper and its code. 0 is the base.",
    )
    step_size: float = Field(
        0.1,
        ge=0.0,
        description="Length s of the ascent step over all auxiliary parameters together. Larger pushes the hidden "
        "states further; the paper has 0.1.",
    )
    auxiliary: Literal["lora", "steering", "trained"] = Field(
        "lora",
        description="What is pushed: fresh low-rank additions (the paper's text), a fresh vector per layer, or the"
        " adapter that is trained (the released code), which needs tuner `lora`.",
    )
    rank: int = Field(
        8,
        ge=1,
        description="Rank of the low-rank additions, whose scale is 1; `steering` does not read it. The released code "
        "has 8.",
    )
    layers: Literal["all", "early", "middle", "late"] = Field(
        "all",
        description="Layers that carry the additions and are compared: `all` (the paper's), or the early, middle or "
        "late third, rounded outwards.",
    )
    states: Literal["layers", "tuple"] = Field(
        "layers",
        description="Hidden states that are compared: the outputs of `layers`, or (the released code) transformers'"
        " tuple: what the first layer reads, the outputs of all layers, the last one behind the final norm.",
    )
    reduction: Literal["mean", "sum"] = Field(
        "mean",
        description="How squared distances are taken over the width: `mean`, as in the released code, or `sum`, the "
        "paper's equation, which is larger by the width (576 to 4096 times).",
    )
    mask: Literal["response", "all"] = Field(
        "response",
        description="Positions compared: those of the answer's tokens (`response`, as in the released code), or `all`,"
        " the prompt's too but for each record's first.",
    )

    @model_validator(mode="after")
    def _options_are_read(self) -> LFU:
        if self.auxiliary == "trained" and self.rank != type(self).model_fields["rank"].default:
            raise ValueError("`auxiliary: trained` uses the tuner's adapter, whose rank the tuner sets: remove `rank`")
        if self.states == "tuple" and self.layers != "all":
            raise ValueError("`states: tuple` compares all states: remove `layers`")
        return self

    @property
    def weight(self) -> float:
        """`coef`, or the published value for this kind of auxiliary parameters."""
        if self.coef is not None:
            return self.coef
        return 0.1 if self.auxiliary == "steering" else 5.0

    @property
    def needs_adapter(self) -> bool:
        return self.auxiliary == "trained"

    def start(self, policy: TokenPolicy) -> None:
        if not isinstance(self.base, TokenObjective | SequenceObjective):
            raise RecipeError(
                f"lfu cannot use `{self.base.kind}` as its base: both forwards must read the record unchanged.",
                "Set `base` to a loss over tokens or records, such as sft or dft.",
            )
        if self.auxiliary == "trained":
            auxiliaries.adapters(policy, self.layer_indices(policy))  # raises before training, not in update 1

    def units(self, batch: Batch) -> dict[str, float]:
        # A count of its own: `mask: all` compares positions that are not targets.
        return self.base.units(batch) | {"compared": float(self.compared(batch).sum())}

    def prepare(self, policy: TokenPolicy, update: Update) -> None:
        self.base.prepare(policy, update)
        auxiliary = self._auxiliary(policy, update)
        gradients = [torch.zeros_like(parameter) for parameter in auxiliary.values]
        unmetered = replace(update, meters={})  # the base reports its meters in the training forward, once
        # The context tells tuners that collect gradients (spiel) to ignore this backward.
        with auxiliary.attached(), context.forward_context(**{context.ASIDE: True}):
            for batch in update.batches:
                inside = self.base.micro_batch_context(policy, batch, update)
                with inside, auxiliary.active(), _same_draws(batch, update):
                    loss = total_of(self.base.terms(policy, batch, unmetered), update.counts)
                    if loss is None:
                        continue
                    pieces = torch.autograd.grad(loss, auxiliary.values, materialize_grads=True, allow_unused=True)
                    for gradient, piece in zip(gradients, pieces, strict=True):
                        gradient += piece
        update.sum_tensors(gradients)
        update.set_prepared(self, (auxiliary, auxiliary.ascend(gradients, self.step_size)))

    def _auxiliary(self, policy: TokenPolicy, update: Update) -> auxiliaries.Auxiliary | auxiliaries.PerturbedAdapter:
        """The parameters that take this update's ascent step, before the step."""
        if self.auxiliary == "trained":
            return auxiliaries.adapters(policy, self.layer_indices(policy))
        key = f"{update.seed}/{update.index}"
        return auxiliaries.make(policy, self.auxiliary, self.layer_indices(policy), self.rank, key)

    def _states(self, policy: TokenPolicy) -> AbstractContextManager[dict[int, Tensor]]:
        """A context that records the hidden states of the forward inside: {layer: [B,T,D]}."""
        return policy.state_tuple() if self.states == "tuple" else policy.layer_outputs(self.layer_indices(policy))

    @contextmanager
    def micro_batch_context(self, policy: TokenPolicy, batch: Batch, update: Update) -> Iterator[None]:
        auxiliary, _ = update.prepared_by(self)
        with auxiliary.attached(), self.base.micro_batch_context(policy, batch, update):
            yield

    def terms(self, policy: TokenPolicy, batch: Batch, update: Update) -> list[Term]:
        auxiliary, norm = update.prepared_by(self)
        with _same_draws(batch, update), self._states(policy) as states:
            terms = self.base.terms(policy, batch, update)
        with _same_draws(batch, update), auxiliary.active(), self._states(policy) as perturbed:
            hidden = policy.hidden(batch)
        mask = self.compared(batch)
        distances = [self.distance(states[index][mask].detach(), perturbed[index][mask]) for index in states]
        distance = torch.stack(distances).mean(0)
        update.meter("consistency", distance.detach().sum(), "compared")
        self._report(policy, batch, update, hidden.detach(), norm)
        return [*terms, Term(distance.sum(), "compared", self.weight)]

    def update_terms(self, policy: TokenPolicy, update: Update) -> list[Term]:
        return self.base.update_terms(policy, update)

    def after_step(self, policy: TokenPolicy, update: Update) -> None:
        self.base.after_step(policy, update)

    def compared(self, batch: Batch) -> Tensor:
        """Mask [B,T] of the positions whose hidden states are compared."""
        # A record's first position is excluded: no token is predicted there, with either mask.
        inner = (batch.example_of >= 0) & (batch.position_of > 0)
        return inner & (batch.weights != 0) if self.mask == "response" else inner

    def layer_indices(self, policy: TokenPolicy) -> list[int]:
        """Indices of the layers: all, or a third of them, rounded outwards."""
        count = len(policy.layers)
        if self.layers == "all":
            return list(range(count))
        third = ("early", "middle", "late").index(self.layers)
        return list(range(third * count // 3, -(-(third + 1) * count // 3)))

    def distance(self, states: Tensor, perturbed: Tensor) -> Tensor:
        """Squared distance of hidden states [n,D] in float32 or wider: [n]."""
        wide = torch.promote_types(states.dtype, torch.float32)
        squares = (states.to(wide) - perturbed.to(wide)).square()
        return squares.mean(-1) if self.reduction == "mean" else squares.sum(-1)

    def _report(self, policy: TokenPolicy, batch: Batch, update: Update, hidden: Tensor, norm: float) -> None:
        """Report ||g|| and the nll with the ascent step: where that does not exceed `nll`, the step is wrong."""
        targets = batch.ids[batch.targets()]
        with torch.no_grad():
            nll = policy.head.sum(hidden, lambda piece, logits: -heads.target_logprob(logits, targets[piece]))
        update.meter("auxiliary_nll", nll, "targets")
        # A meter is a sum over the update divided by a count: norm × targets, summed, over all targets is the norm.
        update.meter("ascent_norm", norm * len(targets), "targets")


def _same_draws(batch: Batch, update: Update) -> Any:
    """A context in which dropout draws the same mask in both forwards, which would otherwise differ without a step."""
    return context.same_draws(f"{update.seed}/{update.index}/{'/'.join(batch.examples)}", batch.ids.device)
