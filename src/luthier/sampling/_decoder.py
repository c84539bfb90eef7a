"""One token for every row through a plain decoder, with less around the arithmetic than the model's own forward.

Attention is done here, over the slots as they lie; every other piece (embeddings, norms, projections with their
adapters, feed-forward, head) is the model's own module and is called. Which models are plain is not a list of names:
`decoder_of` looks at the pieces, then compares logits with the model's own.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from luthier.models.policy import TokenPolicy
from luthier.sampling._trunks import Trunks
from luthier.sampling.cache import Slots
from luthier.sampling.state import Forward

PIECES = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
ROTATIONS = ("default", "linear", "llama3", "yarn")  # angles that do not change with the length of the text
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest logit; coarser types 3e-2
PROBE = 6
LOOKED: WeakKeyDictionary[nn.Module, tuple[Any, bool]] = WeakKeyDictionary()
"""Models that were compared with their own logits: what they were made of, and whether they are plain."""


class Decoder:
    """A plain decoder: pre-norm blocks of rotary attention and a feed-forward, without windows.

    Args:
        forward: the model; `decoder_of` has looked at it.
    """

    def __init__(self, forward: Forward):
        model = forward.inner.get_decoder()
        config = forward.inner.config
        self.embed, self.norm = forward.inner.get_input_embeddings(), model.norm
        self.width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.groups = config.num_key_value_heads
        self.pieces = [[getattr(layer, name) for name in PIECES] for layer in model.layers]
        some = torch.zeros(1, dtype=forward.dtype, device=forward.device)
        cosine, sine = model.rotary_emb(some, torch.arange(forward.context, device=forward.device)[None])
        half = cosine.shape[-1] // 2
        self.cosine = cosine[0, :, None]
        self.sine = torch.cat([-sine[0, :, None, :half], sine[0, :, None, half:]], dim=-1)
        self.head = TokenPolicy(forward.module).head

    def __call__(self, ids: Tensor, slots: Slots, bias: Tensor | None) -> Tensor:
        """Logits [rows,V] after one new token per row; its keys and values are put into the slots at `end`.

        Args:
            ids: [rows].
            slots: what was seen before.
            bias: 0 or -inf for each column of the buffers, [rows,1,columns]; None where no row is padded.
        """
        rows, end = slots.rows, slots.end + 1
        place = slots.next[:rows].clamp(max=len(self.cosine) - 1)
        cosine, sine = self.cosine[place], self.sine[place]
        hidden = self.embed(ids[:, None])
        bias = None if bias is None else bias[:rows, :, slots.start : end]
        for number, (norm, attention, norm_after, feed_forward) in enumerate(self.pieces):
            hidden = hidden + self._attend(attention, norm(hidden), number, slots, cosine, sine, bias)
            hidden = hidden + feed_forward(norm_after(hidden))
        return self.head.logits(self.norm(hidden)[:, 0])

    def _attend(
        self,
        attention: Any,
        hidden: Tensor,
        number: int,
        slots: Slots,
        cosine: Tensor,
        sine: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        rows, width, end = slots.rows, self.width, slots.end
        query = attention.q_proj(hidden).view(rows, -1, width)
        key = attention.k_proj(hidden).view(rows, -1, width)
        value = attention.v_proj(hidden).view(rows, -1, width)
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        query, key = _rotated(query, cosine, sine), _rotated(key, cosine, sine)
        keys, values = slots.layers[number].made_for(key[:, :, None], value[:, :, None])
        keys[:rows, :, end], values[:rows, :, end] = key, value
        seen = slice(slots.start, end + 1)
        keys, values = (one[:rows].flatten(0, 1)[:, seen] for one in (keys, values))
        query = (query * attention.scaling).view(rows * self.groups, -1, width)
        mixed = _mixed(query, keys, values, bias, slots.trunks, number)
        return attention.o_proj(mixed.view(rows, 1, -1))


def _mixed(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, trunks: Trunks | None, number: int
) -> Tensor:
    """Attention of queries [rows·H, repeats, D] over a row's own positions [rows·H, T, D] and those of its trunk."""
    scores = torch.bmm(query, keys.transpose(1, 2))
    if bias is not None:
        scores.view(len(bias), -1, scores.shape[-1]).add_(bias)
    if trunks:
        scores = torch.cat([trunks.scores(number, query), scores], dim=-1)
    weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
    if not trunks:
        return torch.bmm(weights, values)
    shared, own = weights.split([trunks.longest, keys.shape[1]], dim=-1)
    return torch.bmm(own, values).add_(trunks.mixed(number, shared))


def _rotated(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding of [rows,H,D]; the first half of `sine` is negated, so halves only change places."""
    return torch.addcmul(states * cosine, states.roll(states.shape[-1] // 2, -1), sine)


def decoder_of(forward: Forward, slots: Slots) -> Decoder | None:
    """A decoder for the model, or None where its own forward does something else or might; call it in sampling mode.

    Args:
        forward: the model.
        slots: empty ones, to try it in; they are empty again afterwards.
    """
    if not _looks_plain(forward):
        return None
    decoder = Decoder(forward)
    made_of = (forward.dtype, *((name, type(piece)) for name, piece in forward.module.named_modules()))
    known, plain = LOOKED.get(forward.inner, (None, False))
    if known != made_of:
        plain = _says_the_same(decoder, forward, slots)
        LOOKED[forward.inner] = made_of, plain
    return decoder if plain else None


def _says_the_same(decoder: Decoder, forward: Forward, slots: Slots) -> bool:
    ids = torch.arange(2 * PROBE, device=forward.device).view(2, PROBE) % len(decoder.embed.weight)
    own = forward.module(input_ids=ids, use_cache=False).logits[:, -1]
    slots.decoder = decoder
    slots.blank(2)
    try:
        logits = [slots.advance(ids[:, place]) for place in range(PROBE)][-1]
    except TypeError:  # a piece gives more than its states
        return False
    finally:
        slots.decoder = None
        slots.save_assets({0, 1})
    near = TOLERANCE.get(forward.dtype, 3e-2) * float(own.abs().max())
    return float((logits - own).abs().max()) <= near


def _looks_plain(forward: Forward) -> bool:
    inner, config = forward.inner, forward.inner.config
    model = inner.get_decoder() if hasattr(inner, "get_decoder") else None
    layers = getattr(model, "layers", None)
    if not layers or not hasattr(model, "norm") or not hasattr(model, "rotary_emb"):
        return False
    rotation = getattr(config, "rope_parameters", None) or {}
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if windows or getattr(config, "sliding_window", None) or rotation.get("rope_type", "default") not in ROTATIONS:
        return False
    return not _watched(inner, model, forward.module) and all(_plain_layer(layer, config) for layer in layers)


def _plain_layer(layer: nn.Module, config: Any) -> bool:
    if not all(hasattr(layer, name) for name in PIECES) or len(list(layer.children())) != len(PIECES):
        return False
    attention: Any = layer.self_attn
    own = {name for name, _ in attention.named_children()}
    width = getattr(attention, "head_dim", None)
    norms = [getattr(attention, name).weight.shape == (width,) for name in ("q_norm", "k_norm") if name in own]
    known = {"q_proj", "k_proj", "v_proj", "o_proj"}
    return (
        known <= own <= known | {"q_norm", "k_norm"}
        and len(norms) in (0, 2)
        and all(norms)
        and hasattr(attention, "scaling")
        and not _watched(layer, attention)
    )


def _watched(*modules: Any) -> bool:
    """Whether someone takes part in a call that would not be made: hooks, or a forward of the instance's own."""
    return any(piece._forward_hooks or piece._forward_pre_hooks or "forward" in vars(piece) for piece in modules)
