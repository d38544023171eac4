"""Attention over sequences packed side by side: no padding is computed, no sequence sees another.

A packed batch is one row of T tokens. ``bounds`` (n + 1 places) says where sequences begin and end; it travels
from the model's ``forward`` to every attention layer as a keyword argument, as does ``prefix`` (trained keys and
values that every sequence sees first, for P-Tuning v2).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PACKED = "danlu_packed"
"""Name of this implementation among those of transformers."""

EXPLICIT_LIMIT = 1024
"""Up to this many tokens explicit matrix products beat the fused kernel of PyTorch on a CPU."""


def register() -> None:
    """Make :data:`PACKED` known to transformers; calling it again changes nothing."""
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, _mask)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask for calls without ``bounds``: whatever PyTorch's own attention would get."""
    from transformers.masking_utils import sdpa_mask

    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    bounds: Sequence[int] | None = None,
    prefix: Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each sequence.

    Args:
        module: the attention layer; its ``layer_idx`` picks the prefix.
        query: (1, heads, T, d).
        key: (1, key-value heads, T, d).
        value: (1, key-value heads, T, d).
        attention_mask: used only when ``bounds`` is None.
        scaling: factor of the scores; 1/√d by default.
        dropout: probability of dropping a weight.
        bounds: where sequences begin and end; None computes ordinary attention.
        prefix: (layers, 2, key-value heads, N, d), seen by every token.
        sliding_window: a token sees only this many tokens, itself included.
        softcap: scores become softcap · tanh(score / softcap).
        kwargs: further arguments of transformers, not needed here.

    Returns:
        (1, T, heads, d) and None.
    """
    if bounds is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    before = None if prefix is None else prefix[int(module.layer_idx)].to(query.dtype)
    lengths = [end - start for start, end in zip(bounds[:-1], bounds[1:])]
    # splitting once is one concatenation in the backward pass; slicing would fill and add a whole tensor each time
    parts = zip(query[0].split(lengths, 1), key[0].split(lengths, 1), value[0].split(lengths, 1), strict=True)
    outputs = []
    for length, (q, k, v) in zip(lengths, parts):
        if before is not None:
            k, v = torch.cat((before[0], k), dim=1), torch.cat((before[1], v), dim=1)  # noqa: PLW2901
        window = sliding_window if sliding_window is not None and sliding_window < length else None
        explicit = softcap is not None or (q.device.type == "cpu" and length <= EXPLICIT_LIMIT)
        attend = _explicit if explicit else _fused
        outputs.append(attend(q, k, v, scale, dropout, window, softcap).transpose(0, 1))
    return torch.cat(outputs).unsqueeze(0), None


def _explicit(
    q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float, window: int | None, softcap: float | None
) -> Tensor:
    """Attention by matrix products; heads that share a key are one product. All (heads, length, d)."""
    heads, length, width = q.shape
    groups = heads // k.shape[0]
    stacked = _bias(length, k.shape[1], window, q.dtype, q.device, groups)
    shape = (k.shape[0], groups * length, k.shape[1])
    q = q.reshape(k.shape[0], groups * length, width)
    if softcap is None:
        scores = torch.baddbmm(stacked.expand(shape), q, k.transpose(1, 2), alpha=scale)
    else:
        scores = torch.tanh(torch.bmm(q, k.transpose(1, 2)) * (scale / softcap)) * softcap + stacked
    weights = scores.softmax(-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    return torch.bmm(weights, v).view(heads, length, width)


def _fused(
    q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float, window: int | None, softcap: float | None
) -> Tensor:
    """Attention by PyTorch's kernel."""
    plain = q.shape[1] == k.shape[1] and window is None
    mask = None if plain else _bias(q.shape[1], k.shape[1], window, q.dtype, q.device)
    return F.scaled_dot_product_attention(
        q[None],
        k[None],
        v[None],
        attn_mask=mask,
        is_causal=plain,
        scale=scale,
        dropout_p=dropout,
        enable_gqa=q.shape[0] != k.shape[0],
    )[0]


@lru_cache(maxsize=32)
def _bias(
    queries: int, keys: int, window: int | None, dtype: torch.dtype, device: torch.device, copies: int = 1
) -> Tensor:
    """(copies · queries, keys): 0 where a query sees a key, -inf elsewhere; the last query sees the last key."""
    place = torch.arange(queries, device=device).unsqueeze(1)
    other = torch.arange(keys, device=device).unsqueeze(0) - (keys - queries)
    hidden = other > place
    if window is not None:
        hidden |= (other <= place - window) & (other >= 0)
    one = torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
    return one.repeat(copies, 1) if copies > 1 else one
