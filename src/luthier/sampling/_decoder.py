"""One token for every row through a standard decoder, with less overhead than the model's own forward.

Attention is computed here, over the cache as it lies in memory; embeddings, norms, projections with their adapters,
feed-forward layers and the head are the model's own modules and are called. No list of model names says which models
qualify: `decoder_of` checks the structure and compares keys and values, `check` (check.py) logits.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from luthier.models.policy import TokenPolicy
from luthier.sampling._shared_prefixes import SharedPrefixes
from luthier.sampling.cache import Slots
from luthier.sampling.state import Forward

LAYER_MODULES = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
ROTATIONS = ("default", "linear", "llama3", "yarn")  # angles that do not change with the length of the text
FIRST_POSITIONS = 256  # of the table of angles, which grows with the longest row
LARGER = 64.0
"""Keys and values are also compared at this multiple: an attention that clips them shows there what it does."""
MOST_IDS = 8  # tokens of that comparison
KEY_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative to the largest; shorter types twice theirs


class Decoder:
    """A decoder of pre-norm blocks with rotary attention and a feed-forward layer, without sliding windows.

    Args:
        forward: the model; `decoder_of` says whether it has this structure.
    """

    def __init__(self, forward: Forward):
        model = forward.inner.get_decoder()
        config = forward.inner.config
        self.embed, self.norm = forward.inner.get_input_embeddings(), model.norm
        self.width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.groups = config.num_key_value_heads
        # Looked up once: an attribute of a torch module costs a search through three dictionaries.
        self.layers = [attrgetter(*LAYER_MODULES)(layer) for layer in model.layers]
        self.rotary, self.like = model.rotary_emb, torch.zeros(1, dtype=forward.dtype, device=forward.device)
        self.cosine = self.sine = self.like.view(1, 1, 1)[:0]  # [positions,1,D]
        self.head = TokenPolicy(forward.module).head

    def __call__(self, ids: Tensor, slots: Slots, bias: Tensor | None) -> Tensor:
        """Logits [rows,V] after one new token per row; keys and values are written to column `end` of the slots.

        Args:
            ids: new tokens [rows].
            slots: the cache.
            bias: 0 or -inf for each column of the buffers, [rows,1,columns]; None where no row is padded.
        """
        rows, end = slots.rows, slots.end + 1
        # An upper bound of the rows' positions that is known without a look at the device.
        self._extend(end - slots.start + (slots.prefixes.longest if slots.prefixes else 0))
        positions = slots.next[:rows]
        cosine, sine = self.cosine[positions], self.sine[positions]
        hidden = self.embed(ids[:, None])
        bias = None if bias is None else bias[:rows, :, slots.start : end]
        for layer, (norm, attention, norm_after, feed_forward) in enumerate(self.layers):
            hidden = hidden + self._attend(attention, norm(hidden), layer, slots, cosine, sine, bias)
            hidden = hidden + feed_forward(norm_after(hidden))
        return self.head.logits(self.norm(hidden)[:, 0])

    def _extend(self, positions: int) -> None:
        """Compute the angles of so many positions; the model would compute those of each step anew."""
        if positions <= len(self.cosine):
            return
        count = max(FIRST_POSITIONS, 2 * len(self.cosine), positions)
        cosine, sine = self.rotary(self.like, torch.arange(count, device=self.like.device)[None])
        half = cosine.shape[-1] // 2
        self.cosine = cosine[0, :, None]
        # The rotation negates the half that it moves to the front. With the sign in the sine, `roll` alone is enough.
        self.sine = torch.cat([-sine[0, :, None, :half], sine[0, :, None, half:]], dim=-1)

    def _attend(
        self,
        attention: Any,
        hidden: Tensor,
        layer: int,
        slots: Slots,
        cosine: Tensor,
        sine: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """Attention of one new position [rows,1,hidden] to its row; the angles are [rows,1,D]."""
        rows, width, end = slots.rows, self.width, slots.end
        query = attention.q_proj(hidden).view(rows, -1, width)
        key = attention.k_proj(hidden).view(rows, -1, width)
        value = attention.v_proj(hidden).view(rows, -1, width)
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        query, key = _rotated(query, cosine, sine), _rotated(key, cosine, sine)
        keys, values = slots.layers[layer].allocate(key[:, :, None], value[:, :, None])
        keys[:rows, :, end], values[:rows, :, end] = key, value
        window = slice(slots.start, end + 1)
        keys, values = (buffer[:rows].flatten(0, 1)[:, window] for buffer in (keys, values))
        # Query heads that share a key head become rows of one product, so keys are not repeated for each of them.
        query = (query * attention.scaling).view(rows * self.groups, -1, width)
        mixed = _mixed(query, keys, values, bias, slots.prefixes, layer)
        return attention.o_proj(mixed.view(rows, 1, -1))


def _mixed(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, prefixes: SharedPrefixes | None, layer: int
) -> Tensor:
    """Attention [rows·H,repeats,D] of queries of that shape to a row's own positions and those of its prefix.

    Args:
        query: [rows·H,repeats,D], scaled.
        keys, values: the row's own, [rows·H,T,D].
        bias: 0 or -inf, [rows,1,T].
        prefixes: what rows share, if anything.
        layer: index of the layer.
    """
    scores = torch.bmm(query, keys.transpose(1, 2))
    if bias is not None:
        scores.view(len(bias), -1, scores.shape[-1]).add_(bias)
    if prefixes:
        scores = torch.cat([prefixes.scores(layer, query), scores], dim=-1)
    weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)  # float32, as in the models' own attention
    if not prefixes:
        return torch.bmm(weights, values)
    shared, own = weights.split([prefixes.longest, keys.shape[1]], dim=-1)
    return torch.bmm(own, values).add_(prefixes.mixed(layer, shared))


def _rotated(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding of [rows,H,D]; the first half of `sine` is negated, so halves only change places."""
    rolled = states.roll(states.shape[-1] // 2, -1)
    if cosine.dtype == states.dtype:
        return torch.addcmul(states * cosine, rolled, sine)
    return (states * cosine + rolled * sine).to(states.dtype)  # some models keep the angles in float32


def decoder_of(forward: Forward, ids: Tensor) -> Decoder | None:
    """A decoder for the model, or None where the model's own forward does something else.

    What it computes from single tokens is compared; `check` (check.py) compares whole texts. Call it in sampling mode.

    Args:
        forward: the model.
        ids: tokens that the model will read, [n]; a few of them are tried.
    """
    if not _has_known_structure(forward):
        return None
    decoder = Decoder(forward)
    return decoder if _keys_and_values_agree(decoder, forward, ids) else None


def _keys_and_values_agree(decoder: Decoder, forward: Forward, ids: Tensor) -> bool:
    """Whether all layers store the model's keys and values of single tokens, also when these are `LARGER` times as big.

    A text of one token attends to itself alone, so rounding in attention cannot blur the comparison.
    """
    ids = ids[:: -(-len(ids) // MOST_IDS)].to(forward.device)[:, None]
    handles: list[Any] = []

    def enlarged(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output * LARGER

    try:
        for factor in (1.0, LARGER):
            own, ours = Slots(forward, len(ids)), Slots(forward, len(ids))
            for slots in (own, ours):
                slots.start_empty(len(ids))
            if factor != 1.0:
                for _, attention, _, _ in decoder.layers:
                    handles += [getattr(attention, n).register_forward_hook(enlarged) for n in ("k_proj", "v_proj")]
            own.run(ids)
            ours.decoder = decoder
            ours.advance(ids[:, 0])
            for theirs, layer in zip(own.layers, ours.layers, strict=True):
                for wanted, stored in zip(theirs.buffers, layer.buffers, strict=True):
                    if not _is_close(stored[:, :, :1], wanted[:, :, :1]):
                        return False
    finally:
        for handle in handles:
            handle.remove()
    return True


def _is_close(stored: Tensor, wanted: Tensor) -> bool:
    tolerance = KEY_TOLERANCE.get(wanted.dtype, 2 * torch.finfo(wanted.dtype).eps)
    return float((stored.float() - wanted.float()).abs().max()) <= tolerance * float(wanted.float().abs().max())


def _has_known_structure(forward: Forward) -> bool:
    """Whether the model has the modules that `Decoder` calls, and nothing that shows only in longer texts."""
    inner, config = forward.inner, forward.inner.config
    model = inner.get_decoder() if hasattr(inner, "get_decoder") else None
    layers = getattr(model, "layers", None)
    if not layers or not hasattr(model, "norm") or not hasattr(model, "rotary_emb"):
        return False
    # A window, or angles that depend on the length, would pass a comparison on short texts.
    rotation = getattr(config, "rope_parameters", None) or {}
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if windows or getattr(config, "sliding_window", None) or rotation.get("rope_type", "default") not in ROTATIONS:
        return False
    if _is_intercepted(inner, model, forward.module):
        return False
    return all(_is_standard_layer(layer) for layer in layers)


def _is_standard_layer(layer: nn.Module) -> bool:
    """Whether a layer has the four modules of `LAYER_MODULES` and attention of four projections, no more."""
    if not all(hasattr(layer, name) for name in LAYER_MODULES) or len(list(layer.children())) != len(LAYER_MODULES):
        return False
    attention: Any = layer.self_attn
    children = {name for name, _ in attention.named_children()}
    projections = {"q_proj", "k_proj", "v_proj", "o_proj"}
    # Norms of queries and keys have to be per head: some models norm all heads together, before the split.
    width = getattr(attention, "head_dim", None)
    norms = [name for name in ("q_norm", "k_norm") if name in children]
    return (
        projections <= children <= projections | {"q_norm", "k_norm"}
        and len(norms) in (0, 2)
        and all(_is_per_head(getattr(attention, name), width) for name in norms)
        and hasattr(attention, "scaling")
        and not _is_intercepted(layer, attention)
    )


def _is_per_head(norm: Any, width: int | None) -> bool:
    """Whether a norm of queries or keys works on each head, or has no weight that says how wide it is."""
    weight = getattr(norm, "weight", None)
    return weight is None or weight.shape == (width,)


def _is_intercepted(*modules: Any) -> bool:
    """Whether hooks, or a forward set on the instance, take part in a call of these modules.

    `Decoder` does not call these modules themselves, only their children, and would bypass whatever is attached.
    """
    return any(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in modules)
