"""Checks of our assumptions about a language model: its head and its input embeddings.

Each check runs the model at hand on a few tokens, instead of asking a list of known models, and raises ModelError.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from luthier.errors import LuthierError, ModelError
from luthier.models.kernels.head import vocabulary_of
from luthier.models.policy import Policy, TokenPolicy, head_input, reading


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
    ids, name = _tokens(policy, 0, 4), type(policy.module).__name__
    with reading(policy.module):
        try:
            with head_input(policy.output, skip=False) as captured:
                own = policy.module(input_ids=ids, use_cache=False).logits.float() / policy.temperature
            hidden = captured[0]
        except Exception as error:
            raise ModelError(
                f"{name} cannot read a row of tokens alone: {in_words(error)}.",
                "Luthier trains causal language models, whose only input are token ids.",
            ) from error
        ours = policy.head.logits(hidden).float()
    # Loose for logits that the model rounds to bfloat16; a wide soft cap changes small logits by less than that.
    tolerance = 1e-3 if hidden.dtype in (torch.float32, torch.float64) else 2e-2
    # Broken weights give NaN on both sides: whoever reads a row names it.
    atol = tolerance * float(own.nan_to_num(nan=0.0).abs().max())
    if own.shape != ours.shape or not torch.allclose(own, ours, rtol=tolerance, atol=atol, equal_nan=True):
        raise ModelError(
            f"{name} changes its logits after the output embedding in a way Luthier does not know.",
            "Scale (`logit_scale`, `logits_scaling`) and soft cap (`final_logit_softcapping`) are known.",
        )


def verify_embeddings(policy: TokenPolicy) -> None:
    """Check on four tokens that the model reads `embed(ids)` as it reads the ids.

    Raises:
        ModelError: the model needs the ids for more than their embeddings.
    """
    ids = _tokens(policy, 0, 4)
    with reading(policy.module):
        try:
            by_id = policy.input_of_head({"input_ids": ids})
            by_embedding = policy.input_of_head({"inputs_embeds": policy.embed(ids)})
        except Exception as error:  # whatever it raises, it cannot be trained so
            raise _reads_ids(policy.module) from error
    if not torch.allclose(by_id, by_embedding, rtol=1e-4, atol=1e-4 * float(by_id.abs().max())):
        raise _reads_ids(policy.module)


def _tokens(policy: TokenPolicy, start: int, end: int) -> Tensor:
    """Token ids start, ..., end - 1 as one row [1,n], within the vocabulary."""
    device = next(policy.module.parameters()).device
    return torch.arange(start, end, device=device)[None] % vocabulary_of(policy.output)


@contextmanager
def model_errors(module: nn.Module) -> Iterator[None]:
    """Turn an error that the model's own code raises into a ModelError; all others pass.

    Some families read rows in evaluation that they refuse in training (Reformer: lengths that are no multiple).

    Raises:
        ModelError: the innermost frames of an error are those of the module that defines the model.
    """
    try:
        yield
    except (LuthierError, MemoryError):
        raise
    except Exception as error:
        code = {getattr(sys.modules.get(type(part).__module__), "__file__", None) for part in module.modules()}
        frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        # Torch's own layers are in every model: an error within them may be of anybody's tensors.
        if frames and frames[-1] in code and f"{os.sep}torch{os.sep}" not in frames[-1]:
            raise ModelError(
                f"{type(module).__name__} cannot be trained on these rows: {in_words(error)}.",
                "`luthier --debug` shows where. Other lengths (data.max_tokens) or another layout may work.",
            ) from error
        raise


def in_words(error: BaseException) -> str:
    """An error of a model in a sentence: its type and its first line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}".rstrip(" .:")


def _reads_ids(module: nn.Module) -> ModelError:
    return ModelError(
        f"{type(module).__name__} cannot be run from input embeddings alone.",
        "An objective that blends embeddings, such as `ift`, needs a model that takes `inputs_embeds`.",
    )
