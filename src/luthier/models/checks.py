"""Checks of our assumptions about a language model: its head, packed rows, shared prompts and input embeddings.

Each check runs the model at hand on a few tokens, instead of asking a list of known models, and raises ModelError.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models.config import text_config
from luthier.models.kernels.head import vocabulary_of
from luthier.models.policy import Policy, TokenPolicy, head_input, reading
from luthier.types import Batch

PACKING_TOLERANCE = 1e-4
"""Of the largest hidden state. A masked neighbour changes no bit, but a mixture of experts groups tokens and rounds."""
SHARING_TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""As PACKING_TOLERANCE, for short types, which round otherwise in rows of another length."""

PADDED = "Set train.batch.layout=padded."


def verify(policy: Policy) -> None:
    """Check a policy before its first batch: the head of a language model, nothing of other modalities.

    Raises:
        ModelError: the model computes its logits in a way that the head does not know.
    """
    if isinstance(policy, TokenPolicy):
        verify_head(policy)


def verify_head(policy: TokenPolicy) -> None:
    """Check on four tokens that head(hidden) equals the model's own logits.

    Raises:
        ModelError: the model computes its logits in a way that the head does not know.
    """
    ids = _tokens(policy, 0, 4)
    with reading(policy.module):
        own = policy.module(input_ids=ids, use_cache=False).logits.float() / policy.temperature
        with head_input(policy.output) as captured:
            policy.module(input_ids=ids, use_cache=False)
        ours = policy.head.logits(captured[0]).float()
    # Loose enough for logits that the model rounds to bfloat16.
    if not torch.allclose(own, ours, rtol=2e-2, atol=2e-2 * float(own.abs().max())):
        raise ModelError(
            f"{type(policy.module).__name__} changes its logits after the output embedding in a way Luthier"
            " does not know.",
            "Scale (`logit_scale`, `logits_scaling`) and soft cap (`final_logit_softcapping`) are known.",
        )


def verify_packing(policy: TokenPolicy) -> None:
    """Check that a record's hidden states do not change with the record packed before it.

    Recurrent and convolutional layers carry one record into the next, and some models compute their mask or their
    positions without reading `position_ids`.

    Raises:
        ModelError: the hidden states change.
    """
    record = _tokens(policy, 8, 12)
    positions = torch.arange(4, device=record.device).repeat(2)[None]

    def behind(before: Tensor) -> Tensor:
        return policy.input_of_head({"input_ids": torch.cat([before, record], 1)}, None, positions)[:, 4:]

    with reading(policy.module):
        first, second = behind(_tokens(policy, 0, 4)), behind(_tokens(policy, 4, 8))
    if float((first - second).abs().max()) > PACKING_TOLERANCE * float(first.abs().max()):
        raise ModelError(
            f"{type(policy.module).__name__} lets records that are packed into one row see each other.",
            PADDED,
        )


def verify_sharing(policy: TokenPolicy) -> None:
    """Check that an answer behind a shared prompt has the hidden states that it has behind a prompt of its own.

    Recurrent layers, attention over a window of positions, prompts that an adapter puts before the row and kernels
    that take no mask cannot share a prompt.

    Raises:
        ModelError: the hidden states differ, or the model takes no such mask.
    """
    config = text_config(policy.module)
    device = next(policy.module.parameters()).device
    prompt, answers = 4, 3
    row_positions = torch.arange(prompt + answers, device=device)
    example_of = torch.tensor([[0] * (prompt + answers) + [1] * answers], device=device)
    shared = Batch(
        ids=torch.cat([_tokens(policy, 0, prompt + answers), _tokens(policy, 8, 8 + answers)], 1),
        position_of=torch.cat([row_positions, row_positions[prompt:]])[None],
        example_of=example_of,
        examples=("0", "1"),
        records=("0", "1"),
        streams={},
        prompts=(torch.arange(example_of.shape[1], device=device) < prompt)[None],
    )
    alone_ids = torch.cat([_tokens(policy, 0, prompt), _tokens(policy, 8, 8 + answers)], 1)
    with reading(policy.module):
        try:
            mask = policy.mask_of_shared(shared)
            together = policy.input_of_head({"input_ids": shared.ids}, mask, shared.position_of)
            alone = policy.input_of_head({"input_ids": alone_ids}, None, row_positions[None])
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
            raise _sharing_refused(policy.module) from error
    # A window wider than these few tokens would pass unnoticed, so it is read from the config.
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    tolerance = SHARING_TOLERANCE.get(alone.dtype, PACKING_TOLERANCE) * float(alone.abs().max())
    if any(windows) or float((together[:, -answers:] - alone[:, prompt:]).abs().max()) > tolerance:
        raise _sharing_refused(policy.module)


def can_share(policy: TokenPolicy) -> bool:
    """Whether `verify_sharing` passes."""
    try:
        verify_sharing(policy)
    except ModelError:
        return False
    return True


def verify_embeddings(policy: TokenPolicy) -> None:
    """Check on four tokens that the model reads `embed(ids)` as it reads the ids.

    Raises:
        ModelError: the model needs the ids for more than their embeddings.
    """
    ids = _tokens(policy, 0, 4)
    positions = torch.arange(4, device=ids.device)[None]
    with reading(policy.module):
        try:
            by_id = policy.input_of_head({"input_ids": ids}, None, positions)
            by_embedding = policy.input_of_head({"inputs_embeds": policy.embed(ids)}, None, positions)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise _reads_ids(policy.module) from error
    if not torch.allclose(by_id, by_embedding, rtol=1e-4, atol=1e-4 * float(by_id.abs().max())):
        raise _reads_ids(policy.module)


def _tokens(policy: TokenPolicy, start: int, end: int) -> Tensor:
    """Token ids start, ..., end - 1 as one row [1,n], within the vocabulary."""
    device = next(policy.module.parameters()).device
    return torch.arange(start, end, device=device)[None] % vocabulary_of(policy.output)


def _sharing_refused(module: nn.Module) -> ModelError:
    return ModelError(
        f"{type(module).__name__} cannot read one prompt for several answers.",
        PADDED,
    )


def _reads_ids(module: nn.Module) -> ModelError:
    return ModelError(
        f"{type(module).__name__} cannot be run from input embeddings alone.",
        "An objective that blends embeddings, such as `ift`, needs a model that takes `inputs_embeds`.",
    )
