"""IFT: the model reads a blend of the answer and its own guesses; a token's weight grows with the losses after it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.objectives._draws import keyed_uniform
from luthier.objectives.base import Objective
from luthier.parts import lazy
from luthier.types import Batch, Term
from luthier.update import Update

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from luthier.models import checks
    from luthier.models import policy as policies
    from luthier.models.kernels import head as heads
    from luthier.models.policy import TokenPolicy
else:
    torch = lazy("torch")
    checks = lazy("luthier.models.checks")
    heads = lazy("luthier.models.kernels.head")
    policies = lazy("luthier.models.policy")


class IFT(Objective):
    """Intuitive fine-tuning: blended input embeddings, and weights that look ahead.

    1. Without gradient and in eval mode, the greedy guess x'_t of every target from its gold prefix.
    2. With gradient, l_t = -log p(y_t | e), where e_t = (1-residual) E[x_t] + residual E[x'_t] at targets.
    3. c_t = Σ_{i≥t} decay^(i-t) l_i within the record, w_t = c_t N / Σ c; decay 0 means w = 1.
    A record's loss is (1/N) Σ_t w_t l_t with N its targets, the update's loss is the mean over records. The weights
    are differentiated unless `detach_weights`. The lookup E gets no gradient (a tied output still trains the
    table) unless `train_embedding_through_blend`. `residual` moves from `residual_start` over training, or
    over its first `residual_warmup` updates, and is multiplied by 1 + residual_noise · n, n one normal number per
    update. `propagation: mask` takes 1 for l_i in 3, a schedule by position. Token weights multiply l_t.
    Meters: `nll` (of the gold prefix), `blended_nll`, `agreement` (share of guesses that equal the target).

    Source: arXiv 2405.11870 and its released code, which differ: equation 21 is an undiscounted double sum
    with the opposite order. This is the code's form.
    Raises: RecipeError at the start, where the model does not accept input embeddings.
    """

    PAPER: ClassVar[str] = "arXiv 2405.11870"
    UNIT: ClassVar[str] = "records"
    DETACHED: ClassVar = ("embeddings read",)
    SETTINGS: ClassVar = (
        {},
        {"residual": 0.6},
        {"residual_start": 0.0},
        {"residual_start": 0.0, "residual_warmup": 2},
        {"residual_noise": 0.5},
        {"decay": 0.5},
        {"propagation": "mask"},
        {"detach_weights": True},
        {"train_embedding_through_blend": True},
    )

    residual: float = Field(
        0.2,
        ge=0.0,
        le=1.0,
        description="Share λ of the guessed token's embedding in the input at targets. 0 reads the answer as it is; "
        "paper and code have 0.2.",
    )
    residual_start: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="λ at the start of training; it moves to `residual` in a straight line over the budget. Null keeps"
        " `residual` throughout.",
    )
    residual_warmup: int | None = Field(
        None,
        ge=1,
        description="Updates over which `residual_start` moves to `residual` in a straight line, and then stays there"
        " (the released code, whose script has 15% of all updates). Raising it blends less for longer. null: over the"
        " whole budget. Needs `residual_start`.",
    )
    residual_noise: float = Field(
        0.0,
        ge=0.0,
        description="Standard deviation s of the noise on λ, which is multiplied by 1 + s·n (n one normal number per "
        "update) and kept in [0, 1]. The code's noisy variant has 0.5.",
    )
    decay: float = Field(
        0.95,
        ge=0.0,
        le=1.0,
        description="Decay γ per token: how far ahead a token answers for later losses. 0 weighs all tokens alike, 1 "
        "counts all that follows. Paper and code have 0.95.",
    )
    propagation: Literal["loss", "mask"] = Field(
        "loss",
        description="What a weight sums over later tokens: their losses (`loss`, as published), or 1 for each of them "
        "(`mask`), which is a schedule by position.",
    )
    detach_weights: bool = Field(
        False,
        description="Whether the token weights w are constants. The published code differentiates them, which changes "
        "the gradient by a fifth and more.",
    )
    train_embedding_through_blend: bool = Field(
        False,
        description="Whether the blended lookups train the input embeddings. The published code does not; a tied "
        "output layer still trains the table.",
    )

    @model_validator(mode="after")
    def _warms_up_from_somewhere(self) -> IFT:
        if self.residual_warmup is not None and self.residual_start is None:
            raise ValueError("`residual_warmup` leads from `residual_start` to `residual`: write `residual_start` too")
        return self

    def start(self, policy: TokenPolicy) -> None:
        checks.verify_embeddings(policy)

    def terms(self, policy: TokenPolicy, batch: Batch, update: Update) -> list[Term]:
        rows, columns = batch.targets()
        if not len(rows):  # a micro-batch without targets has no losses to take a maximum or a total of
            return []
        targets, owner, position = (x[rows, columns] for x in (batch.ids, batch.example_of, batch.position_of))
        guesses, nll = greedy_guesses(policy, batch)
        update.meter("nll", nll.sum(), "targets")
        update.meter("agreement", (guesses == targets).double().sum(), "targets")
        embeddings = self.blend(policy, batch, guesses, self.residual_at(update))
        hidden = policy.hidden(batch, embeddings)
        losses = -policy.head.map(hidden, lambda piece, logits: heads.target_logprob(logits, targets[piece]))
        update.meter("blended_nll", losses.detach().sum(), "targets")
        losses = losses * batch.weights[rows, columns]
        weights = self.relation(losses, owner, position)
        return [Term((weights * losses / owner.bincount()[owner]).sum(), self.unit)]

    def blend(self, policy: TokenPolicy, batch: Batch, guesses: Tensor, residual: float) -> Tensor:
        """Embeddings [B,T,D] of the batch, at the targets mixed with those of the guesses [N]."""
        guessed = batch.ids.index_put(batch.targets(), guesses)
        # As in the released code, the table learns only where it is tied to the output, unless the option asks.
        with torch.set_grad_enabled(self.train_embedding_through_blend):
            return torch.lerp(policy.embed(batch.ids), policy.embed(guessed), residual)

    def relation(self, losses: Tensor, owner: Tensor, position: Tensor) -> Tensor:
        """Weights [N] with mean 1 in each record, from losses [N], their record and their position in it."""
        if self.decay == 0.0:
            return torch.ones_like(losses)
        propagated = losses.detach() if self.detach_weights else losses
        if self.propagation == "mask":
            propagated = torch.ones_like(losses)
        sums = discounted(propagated, owner, position, self.decay)
        total = sums.new_zeros(int(owner.max()) + 1).index_add(0, owner, sums)
        # A record whose losses are all 0 has a total of 0; its weights are then 0 and not 0/0.
        return sums * owner.bincount()[owner] / total.clamp_min(torch.finfo(sums.dtype).tiny)[owner]

    def residual_at(self, update: Update) -> float:
        """The coefficient of the blend in this update."""
        start = self.residual if self.residual_start is None else self.residual_start
        share = update.progress if self.residual_warmup is None else min(1.0, (update.index - 1) / self.residual_warmup)
        residual = start + (self.residual - start) * share
        if self.residual_noise:
            # Box and Muller's transform of keyed numbers: every rank and a resumed run draw the same noise.
            first, second = keyed_uniform(torch.zeros(1, dtype=torch.int64), update, 2)[0].tolist()
            normal = math.sqrt(-2 * math.log(1 - first)) * math.cos(2 * math.pi * second)
            residual *= 1 + self.residual_noise * normal
        return min(1.0, max(0.0, residual))


def greedy_guesses(policy: TokenPolicy, batch: Batch) -> tuple[Tensor, Tensor]:
    """The likeliest token at every target and -log p of the target, from the gold prefix: [N] each, no gradient."""
    targets: Any = batch.ids[batch.targets()]
    guesses, nll = [], []
    with policies.reading(policy.module):
        hidden = policy.hidden(batch)
        for piece in policy.head.chunks(hidden):
            logits = policy.head.logits(hidden[piece])
            guesses.append(logits.argmax(-1))
            nll.append(-heads.target_logprob(logits, targets[piece]))
        return torch.cat(guesses), torch.cat(nll)


def discounted(values: Tensor, owner: Tensor, position: Tensor, decay: float) -> Tensor:
    """Σ_{i≥t} decay^(i-t) v_i over the later positions of the same record: [N] → [N].

    By doubling, in log2(length) tensor operations: after k rounds a position holds the sum over the 2^k positions
    that start at it.
    """
    length = int(position.max()) + 1
    grid = values.new_zeros(int(owner.max()) + 1, length).index_put((owner, position), values)
    reach = 1
    while reach < length:
        grid = grid + decay**reach * torch.nn.functional.pad(grid[:, reach:], (0, reach))
        reach *= 2
    return grid[owner, position]
