"""LfU: the hidden states should not move when the model is pushed where its loss grows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

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

    Per update: fresh auxiliary parameters a (a low-rank addition to every linear, or a steering vector per
    layer); g = d base(a) / d a over the whole update; a = step_size · g / ||g|| over all of them together.
    Then loss = base + coef · (1/TK) Σ_t Σ_l ||sg[h_lt] - h'_lt||², h' the outputs of the K layers with a in
    place, T the targets' own positions (`mask: all`: every position but each record's first). a is constant
    there and discarded afterwards; theta learns through h' alone. `reduction` over the width: the paper's
    text says mean, its equation sum; they differ by a factor of the width. `layers` carry a and are compared.
    Reported: `consistency`, `ascent_norm` ||g||, and `auxiliary_nll`, which must lie above `nll`.

    Source: arXiv 2511.13052. The ascent is one per update, never per micro-batch, so a split changes nothing.
    """

    PAPER: ClassVar[str] = "arXiv 2511.13052"
    WHOLE_ROWS: ClassVar[bool] = True
    DETACHED: ClassVar = ("hidden states at rest",)
    SETTINGS: ClassVar = (
        {},
        {"base": "dft"},
        {"coef": 1.0},
        {"step_size": 0.2},
        {"auxiliary": "steering"},
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
    coef: float = Field(
        5.0,
        ge=0.0,
        description="Weight λ of the consistency term. Larger holds the hidden states more firmly; 0 is the base loss "
        "alone. The paper has 5 for `auxiliary: lora`.",
    )
    step_size: float = Field(
        0.1,
        ge=0.0,
        description="Length s of the ascent step over all auxiliary parameters together. Larger pushes the hidden "
        "states further; the paper has 0.1.",
    )
    auxiliary: Literal["lora", "steering"] = Field(
        "lora",
        description="What is pushed: `lora`, a fresh low-rank addition to every linear layer, or `steering`, a vector "
        "per layer, which has fewer parameters.",
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

    def start(self, policy: TokenPolicy) -> None:
        if not isinstance(self.base, TokenObjective | SequenceObjective):
            raise RecipeError(
                f"lfu cannot stand on `{self.base.kind}`: both of its forwards must read the record as it is.",
                "Take a loss over tokens or records as its base, such as sft or dft.",
            )

    def units(self, batch: Batch) -> dict[str, float]:
        return self.base.units(batch) | {"compared": float(self.compared(batch).sum())}

    def prepare(self, policy: TokenPolicy, update: Update) -> None:
        self.base.prepare(policy, update)
        made = auxiliaries.make(policy, self.auxiliary, self.chosen(policy), self.rank, f"{update.seed}/{update.index}")
        gradients = [torch.zeros_like(value) for value in made.values]
        aside = replace(update, meters={})
        with made.attached():
            for batch in update.batches:
                with self.base.micro_batch_context(policy, batch, update), made.active(), _same_draws(batch, update):
                    loss = total_of(self.base.terms(policy, batch, aside), update.counts)
                    if loss is not None:
                        found = torch.autograd.grad(loss, made.values, materialize_grads=True, allow_unused=True)
                        for total, piece in zip(gradients, found, strict=True):
                            total += piece
        update.sum_tensors(gradients)
        update.set_prepared(self, (made, made.ascend(gradients, self.step_size)))

    @contextmanager
    def micro_batch_context(self, policy: TokenPolicy, batch: Batch, update: Update) -> Iterator[None]:
        auxiliary, _ = update.prepared_by(self)
        with auxiliary.attached(), self.base.micro_batch_context(policy, batch, update):
            yield

    def terms(self, policy: TokenPolicy, batch: Batch, update: Update) -> list[Term]:
        auxiliary, norm = update.prepared_by(self)
        chosen = self.chosen(policy)
        with _same_draws(batch, update), policy.layer_outputs(chosen) as plain:
            terms = self.base.terms(policy, batch, update)
        with _same_draws(batch, update), auxiliary.active(), policy.layer_outputs(chosen) as pushed:
            hidden = policy.hidden(batch)
        where = self.compared(batch)
        distance = torch.stack([self.distance(plain[i][where].detach(), pushed[i][where]) for i in chosen]).mean(0)
        update.meter("consistency", distance.detach().sum(), "compared")
        self._report(policy, batch, update, hidden.detach(), norm)
        return [*terms, Term(distance.sum(), "compared", self.coef)]

    def update_terms(self, policy: TokenPolicy, update: Update) -> list[Term]:
        return self.base.update_terms(policy, update)

    def after_step(self, policy: TokenPolicy, update: Update) -> None:
        self.base.after_step(policy, update)

    def compared(self, batch: Batch) -> Tensor:
        """Positions [B,T] whose hidden states are compared."""
        inner = (batch.example_of >= 0) & (batch.position_of > 0)
        return inner & (batch.weights != 0) if self.mask == "response" else inner

    def chosen(self, policy: TokenPolicy) -> list[int]:
        """Indices of the layers: all, or a third of them, rounded outwards."""
        count = len(policy.layers)
        if self.layers == "all":
            return list(range(count))
        third = ("early", "middle", "late").index(self.layers)
        return list(range(third * count // 3, -(-(third + 1) * count // 3)))

    def distance(self, plain: Tensor, pushed: Tensor) -> Tensor:
        """Squared distance of hidden states [n,D] in float32 or wider: [n]."""
        wide = torch.promote_types(plain.dtype, torch.float32)
        squares = (plain.to(wide) - pushed.to(wide)).square()
        return squares.mean(-1) if self.reduction == "mean" else squares.sum(-1)

    def _report(self, policy: TokenPolicy, batch: Batch, update: Update, hidden: Tensor, norm: float) -> None:
        """The gradient's norm, and the likelihood after the step: if it did not fall, the step is wrong."""
        targets = batch.ids[batch.targets()]
        with torch.no_grad():
            nll = policy.head.sum(hidden, lambda piece, logits: -heads.target_logprob(logits, targets[piece]))
        update.meter("auxiliary_nll", nll, "targets")
        update.meter("ascent_norm", norm * len(targets), "targets")


def _same_draws(batch: Batch, update: Update) -> Any:
    """Both forwards of a micro-batch drop the same, else they differ without any push."""
    return context.same_draws(f"{update.seed}/{update.index}/{'/'.join(batch.examples)}", batch.ids.device)
