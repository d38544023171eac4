"""Attention over sequences packed side by side: no padding is computed, no sequence sees another.

A packed batch is one row of T tokens. ``bounds`` (n + 1 places) says where sequences begin and end; it travels
from the model's ``forward`` to every attention layer as a keyword argument, as do ``prefix`` (trained keys and
values that every sequence sees first, for P-Tuning v2), ``parents`` (which sequence another one continues, so
that a prompt with several answers is computed once) and ``contexts`` (how many tokens at the beginning of a sequence
see one another, in a prefix language model).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

PACKED = "danlu_packed"
"""Name of this implementation among those of transformers."""

EXPLICIT_LIMIT = 1024
"""Up to this many tokens explicit matrix products beat the fused kernel of PyTorch on a CPU."""


Window: TypeAlias = tuple[int, int] | None
"""Tokens that a token sees, itself included, and how many keys in front it sees always; None: everything before it."""


class Sight(NamedTuple):
    """Which keys a query sees, of those that stand before it if nothing else is said.

    Attributes:
        window: how many of them.
        shared: keys in front that every query sees, those behind it too.
    """

    window: Window = None
    shared: int = 0


CAUSAL = Sight()


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
    parents: Sequence[int] | None = None,
    contexts: Sequence[int] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each sequence, both ways inside its context.

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
        parents: for each sequence the number of the one that it continues, or -1; None when none does.
        contexts: for each sequence how many of its first tokens are seen by all of its tokens; None: none.
        sliding_window: a token sees only this many tokens, itself included.
        softcap: scores become softcap · tanh(score / softcap).
        kwargs: further arguments of transformers, not needed here.

    Returns:
        (1, T, heads, d) and None.
    """
    if bounds is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    before = None if prefix is None else prefix[int(module.layer_idx)].to(query.dtype)
    always = 0 if before is None else before.shape[2]
    lengths = [end - start for start, end in zip(bounds[:-1], bounds[1:])]
    # splitting once is one concatenation in the backward pass; slicing would fill and add a whole tensor each time
    queries, keys, values = (part[0].split(lengths, 1) for part in (query, key, value))
    outputs = []
    for number, q in enumerate(queries):
        seen = [number] if parents is None or parents[number] < 0 else [parents[number], number]
        k, v = _joined(before, 0, [keys[i] for i in seen]), _joined(before, 1, [values[i] for i in seen])
        own = k.shape[1] - always
        window = (sliding_window, always) if sliding_window is not None and sliding_window < own else None
        context = contexts[number] if contexts is not None else 0
        sight = Sight(window, k.shape[1] - q.shape[1] + context if context > 1 else 0)
        small = q.device.type == "cpu" and k.shape[1] <= EXPLICIT_LIMIT
        attend = _explicit if small or softcap is not None else _fused
        outputs.append(attend(q, k, v, scale, dropout, sight, softcap).transpose(0, 1))
    return torch.cat(outputs).unsqueeze(0), None


def _joined(prefix: Tensor | None, which: int, parts: Sequence[Tensor]) -> Tensor:
    """Keys (0) or values (1) that a sequence sees: the prefix's, what it continues, its own."""
    every = [*([] if prefix is None else [prefix[which]]), *parts]
    return every[0] if len(every) == 1 else torch.cat(every, dim=1)


def _explicit(
    q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float, sight: Sight, softcap: float | None
) -> Tensor:
    """Attention by matrix products; heads that share a key are one product. All (heads, length, d)."""
    heads, length, width = q.shape
    groups = heads // k.shape[0]
    stacked = _bias(length, k.shape[1], sight, q.dtype, q.device, groups)
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
    q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float, sight: Sight, softcap: float | None
) -> Tensor:
    """Attention by PyTorch's kernel."""
    plain = q.shape[1] == k.shape[1] and sight == CAUSAL
    mask = None if plain else _bias(q.shape[1], k.shape[1], sight, q.dtype, q.device)
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
def _bias(queries: int, keys: int, sight: Sight, dtype: torch.dtype, device: torch.device, copies: int = 1) -> Tensor:
    """(copies · queries, keys): 0 where a query sees a key, -inf elsewhere; the last query sees the last key."""
    place = torch.arange(queries, device=device).unsqueeze(1)
    other = torch.arange(keys, device=device).unsqueeze(0) - (keys - queries)
    hidden = other > place
    if sight.window is not None:
        size, always = sight.window
        hidden |= (other <= place - size) & (other >= queries - keys + always)
    hidden[:, : sight.shared] = False
    one = torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
    return one.repeat(copies, 1) if copies > 1 else one
