"""Attention over sequences packed side by side: no padding is computed, no sequence sees another.

A packed batch is one row of T tokens. ``bounds`` (n + 1 places) says where sequences begin and end; it travels
from the model's ``forward`` to every attention layer as a keyword argument, as do ``prefix`` (trained keys and
values that every sequence sees first, for P-Tuning v2), ``parents`` (which sequence another one continues, so
that a prompt with several answers is computed once) and ``contexts`` (how many tokens at the beginning of a sequence
see one another, in a prefix language model).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

PACKED = "danlu_packed"
"""Name of this implementation among those of transformers."""

EXPLICIT_LIMIT = 1024
"""Up to this many tokens explicit matrix products beat the fused kernel of PyTorch on a CPU."""


Beginning: TypeAlias = Sequence[tuple[Tensor, Tensor]]
"""For each layer keys and values (heads of keys, N, d) of what stands before a text; a tensor (layers, 2, …) is one."""

Window: TypeAlias = int | None
"""Tokens that a token sees, itself included and those of a prefix as well; None: everything."""


class Sight(NamedTuple):
    """Which keys a query sees, of those that stand before it if nothing else is said.

    Attributes:
        window: how many of them.
        shared: keys in front that every query sees, those behind it too.
    """

    window: Window = None
    shared: int = 0


CAUSAL = Sight()


CHANGES_SCORES = ("position_bias", "sinks", "indices", "block_indices")
"""Arguments with which a layer asks for other scores than those of its queries and keys."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a layer does to its scores besides scaling them; see :func:`packed_attention`."""

    softcap: float | None = None
    sinks: Tensor | None = None

    @classmethod
    def asked(cls, softcap: float | None, sinks: Tensor | None, others: Mapping[str, Any]) -> Scores:
        """What a layer asks for; a TypeError where that is not known here."""
        unknown = [name for name in CHANGES_SCORES if others.get(name) is not None]
        if unknown:
            raise TypeError(f"packed attention does not know {unknown[0]}")
        return cls(softcap, sinks)

    @property
    def plain(self) -> bool:
        """Whether PyTorch's kernel can compute them."""
        return self.softcap is None and self.sinks is None

    def capped(self, scores: Tensor) -> Tensor:
        """The scores within ± softcap."""
        return scores if self.softcap is None else torch.tanh(scores / self.softcap) * self.softcap


def register() -> None:
    """Make :data:`PACKED` known to transformers; calling it again changes nothing."""
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, _mask)


def packed_options(
    bounds: Sequence[int],
    device: torch.device,
    *,
    parents: Sequence[int] | None = None,
    prefix: Beginning | Tensor | None = None,
) -> dict[str, Any]:
    """Arguments of a model's forward that make it read one row as sequences side by side; see the module."""
    # A mask of four dimensions is passed through by transformers; the attention itself reads the bounds.
    options = {"bounds": list(bounds), "attention_mask": torch.zeros(1, 1, 1, 1, device=device)}
    further = {"parents": None if parents is None else list(parents), "prefix": prefix}
    return options | {name: value for name, value in further.items() if value is not None}


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask for calls without ``bounds``: whatever PyTorch's own attention would get."""
    from transformers.masking_utils import sdpa_mask

    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


def _plain(*args: Any, scores: Scores, **kwargs: Any) -> Any:
    """PyTorch's attention as transformers calls it, for ordinary batches."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(*args, **kwargs)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    bounds: Sequence[int] | None = None,
    prefix: Beginning | Tensor | None = None,
    parents: Sequence[int] | None = None,
    contexts: Sequence[int] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    witness: list[Window] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each sequence, both ways inside its context.

    Args:
        module: the attention layer; its ``layer_idx`` picks the prefix.
        query: (1, heads, T, d).
        key: (1, key-value heads, T, d).
        value: (1, key-value heads, T, d or another width).
        attention_mask: used only when ``bounds`` is None.
        scaling: factor of the scores; 1/√d by default.
        dropout: probability of dropping a weight.
        bounds: where sequences begin and end; None computes ordinary attention.
        prefix: keys and values that stand in front of every sequence.
        parents: for each sequence the number of the one that it continues, or -1; None when none does.
        contexts: for each sequence how many of its first tokens are seen by all of its tokens; None: none.
        sliding_window: tokens that a token sees, itself included; a prefix counts, as it does in a cache.
        softcap: scores become softcap · tanh(score / softcap).
        s_aux: (heads), the score of a sink that takes a share of the weights and gives nothing.
        witness: gets the window that each layer asks for.
        kwargs: further arguments of transformers.

    Returns:
        (1, T, heads, width of the values) and None.

    Raises:
        TypeError: when the layer wants its scores changed in a way that is not known here.
    """
    scores = Scores.asked(softcap, s_aux, kwargs)
    if bounds is None:
        own = _plain if scores.plain else _whole
        return own(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, scores=scores, **kwargs)
    if witness is not None:
        witness.append(sliding_window)
    scale = scaling or query.shape[-1] ** -0.5
    before = None if prefix is None else [part.to(query.dtype) for part in prefix[int(module.layer_idx)]]
    queries, keys, values = (_sequences(part, bounds) for part in (query, key, value))
    outputs: list[Tensor] = []
    for number, q in enumerate(queries):
        seen = [number] if parents is None or parents[number] < 0 else [parents[number], number]
        k, v = _joined(before, 0, [keys[i] for i in seen]), _joined(before, 1, [values[i] for i in seen])
        sight = _sight(q, k, sliding_window, contexts[number] if contexts else 0)
        outputs.append(_kernel(q, k, scores)(q, k, v, scale, dropout, sight, scores).transpose(0, 1))
    return torch.cat(outputs).unsqueeze(0), None


def _sequences(part: Tensor, bounds: Sequence[int]) -> Sequence[Tensor]:
    """Sequences (heads, length, d) of a packed row (1, heads, T, d).

    They are split at once: one concatenation in the backward pass, where slices would fill and add whole tensors.
    """
    return part[0].split([end - start for start, end in zip(bounds[:-1], bounds[1:])], 1)


def _sight(q: Tensor, k: Tensor, sliding_window: Window, context: int) -> Sight:
    """What queries see of the keys, whose last are their own and the first ``context`` of those seen by all."""
    before = k.shape[1] - q.shape[1]  # what stands before the sequence is seen by all of its tokens anyway
    window = sliding_window if sliding_window and sliding_window < k.shape[1] else None
    return Sight(window, before + context if context > 1 else 0)


def _kernel(q: Tensor, k: Tensor, scores: Scores) -> Callable[..., Tensor]:
    return _fused if scores.plain and (q.device.type != "cpu" or k.shape[1] > EXPLICIT_LIMIT) else _explicit


def _joined(prefix: Sequence[Tensor] | None, which: int, parts: Sequence[Tensor]) -> Tensor:
    """Keys (0) or values (1) that a sequence sees: the prefix's, what it continues, its own."""
    every = [*([] if prefix is None else [prefix[which]]), *parts]
    return every[0] if len(every) == 1 else torch.cat(every, dim=1)


def _explicit(q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float, sight: Sight, scores: Scores) -> Tensor:
    """Attention by matrix products; heads that share a key are one product. All (heads, length, d)."""
    heads, length, width = q.shape
    groups = heads // k.shape[0]
    stacked = _bias(length, k.shape[1], sight, q.dtype, q.device, groups)
    shape = (k.shape[0], groups * length, k.shape[1])
    q = q.reshape(k.shape[0], groups * length, width)
    if scores.softcap is None:
        told = torch.baddbmm(stacked.expand(shape), q, k.transpose(1, 2), alpha=scale)
    else:
        told = scores.capped(torch.bmm(q, k.transpose(1, 2)) * scale) + stacked
    sinks = None if scores.sinks is None else scores.sinks.view(k.shape[0], groups, 1).expand(-1, -1, length)
    weights = _weights(told, None if sinks is None else sinks.reshape(k.shape[0], groups * length, 1), dropout)
    return torch.bmm(weights, v).view(heads, length, v.shape[2])


def _weights(told: Tensor, sinks: Tensor | None, dropout: float) -> Tensor:
    """Softmax over the last axis of scores (…, queries, keys), with a sink (…, queries, 1) that takes its share."""
    if sinks is None:
        weights = told.softmax(-1)
    else:
        weights = torch.cat((told, sinks.to(told.dtype)), dim=-1).softmax(-1)[..., :-1]
    return F.dropout(weights, dropout) if dropout else weights


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float, sight: Sight, scores: Scores) -> Tensor:
    """Attention by PyTorch's kernel; the scores are plain ones."""
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


def _whole(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scores: Scores,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of ordinary batches (rows, heads, length, d) whose scores PyTorch's kernel cannot change."""
    scaling, dropout = options["scaling"], options["dropout"]
    rows, heads, length, width = query.shape
    groups = heads // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    told = scores.capped(query @ key.transpose(2, 3) * (width**-0.5 if scaling is None else scaling))
    if mask is None:
        told = told + _bias(length, key.shape[2], CAUSAL, told.dtype, told.device)
    elif mask.dtype == torch.bool:
        told = told.masked_fill(~mask, torch.finfo(told.dtype).min)  # padding sees nothing, and must not become nan
    else:
        told = told + mask
    sinks = None if scores.sinks is None else scores.sinks.view(1, heads, 1, 1).expand(rows, heads, length, 1)
    return (_weights(told, sinks, dropout) @ value).transpose(1, 2).contiguous(), None


@lru_cache(maxsize=32)
def _bias(queries: int, keys: int, sight: Sight, dtype: torch.dtype, device: torch.device, copies: int = 1) -> Tensor:
    """(copies · queries, keys): 0 where a query sees a key, -inf elsewhere; the last query sees the last key."""
    place = torch.arange(queries, device=device).unsqueeze(1)
    other = torch.arange(keys, device=device).unsqueeze(0) - (keys - queries)
    hidden = other > place
    if sight.window is not None:
        hidden |= other <= place - sight.window
    hidden[:, : sight.shared] = False
    one = torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
    return one.repeat(copies, 1) if copies > 1 else one
