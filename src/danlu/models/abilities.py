"""What a model's code allows, found by asking it and comparing numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from danlu.models.attention import PACKED, Beginning, packed_options, register
from danlu.models.prefix import split_prefix


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a model's code allows, found by asking it and comparing numbers.

    Attributes:
        packed: sequences side by side give what they give one by one.
        plain_head: logits are the output layer applied to the last hidden states, nothing more.
    """

    packed: bool
    plain_head: bool


def computing_parts(model: Any) -> tuple[Any, Any]:
    """Of a model opened to answer, the causal language model with adapters in its layers, and the prefix or None."""
    inner, prefix = split_prefix(model)
    return (inner.get_base_model() if hasattr(inner, "get_base_model") else inner), prefix


def examine(model: Any) -> Abilities:
    """Try the two shortcuts on a few tokens and keep those that give the same numbers.

    The model is left with packed attention switched on if that is right for it, with its own otherwise.
    """
    own = model.config._attn_implementation
    packed = False
    if getattr(model, "_supports_attention_backend", False):
        alone = _one_by_one(model.eval())
        register()
        model.set_attn_implementation(PACKED)
        packed = _packing_is_exact(model, alone)
        if not packed:
            model.set_attn_implementation(own)
    return Abilities(packed=packed, plain_head=_head_is_plain(model))


CUTS = (0, 7, 12)
"""Where the two sequences of the probe begin and end."""


@torch.no_grad()
def _one_by_one(model: Any) -> Tensor:
    """Hidden states of the probe's sequences, each computed by itself with the model's own attention."""
    ids = _probe_ids(model, CUTS[-1])
    return torch.cat(
        [
            model.base_model(input_ids=ids[:, start:end], use_cache=False).last_hidden_state[0]
            for start, end in zip(CUTS[:-1], CUTS[1:])
        ]
    )


@torch.no_grad()
def _packing_is_exact(model: Any, alone: Tensor) -> bool:
    ids = _probe_ids(model, CUTS[-1])
    windows: list[Any] = []
    positions = torch.cat([torch.arange(end - start) for start, end in zip(CUTS[:-1], CUTS[1:])])
    try:
        together = model.base_model(
            input_ids=ids,
            position_ids=positions.unsqueeze(0).to(ids.device),
            use_cache=False,
            witness=windows,
            **packed_options(CUTS, ids.device),
        ).last_hidden_state[0]
    except (TypeError, RuntimeError, ValueError, AttributeError):
        return False  # code that does not pass unknown arguments to its attention
    asked = sum(window is not None for window in windows)
    return asked >= _windowed_layers(model.config.get_text_config()) and _same(together, alone)


def _windowed_layers(config: Any) -> int:
    """How many layers see only some of the tokens before them: more than a short probe can show.

    Layers that see chunks are counted twice: packed attention knows windows alone.
    """
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    windows = kinds.count("sliding_attention") if getattr(config, "sliding_window", None) else 0
    chunks = kinds.count("chunked_attention") if getattr(config, "attention_chunk_size", None) else 0
    return windows + 2 * chunks


@torch.no_grad()
def _head_is_plain(model: Any) -> bool:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return False
    ids = _probe_ids(model, 5)
    model.eval()
    logits = model(input_ids=ids, use_cache=False).logits
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return _same(logits, head(hidden.to(head.weight.dtype)))  # some keep the last states in float32


def _probe_ids(model: Any, count: int) -> Tensor:
    size = min(model.get_input_embeddings().weight.shape[0], 1000)
    device = model.get_input_embeddings().weight.device
    return (torch.arange(count, device=device) * 37 % (size - 3) + 3).unsqueeze(0)


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether numbers are the same but for rounding; half precision rounds differently along other ways."""
    tolerance = 1e-3 if first.dtype == torch.float32 else 0.03
    first, second = first.float(), second.float()
    return bool((first - second).norm() <= tolerance * second.norm())


MOVING = ("dynamic", "longrope")
"""Rotary embeddings that depend on how long the whole text is."""


@torch.no_grad()
def beginnings_are_exact(model: Any) -> bool:
    """Whether what a packed model keeps of the beginning of a text serves whatever comes behind it.

    It does not where the beginning sees what comes later, as the context of a prefix language model does.
    """
    if hasattr(model, "token_positions") or _rope_type(model.config.get_text_config()) in MOVING:
        return False
    ids, cut = _probe_ids(model, CUTS[-1]), CUTS[1]
    positions = torch.arange(CUTS[-1], device=ids.device).unsqueeze(0)
    told: dict[str, Any] = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    try:
        whole = model.base_model(**told, **packed_options(CUTS[::2], ids.device)).last_hidden_state[0]
        kept = beginning(model, ids[:, :cut], positions[:, :cut])
        told |= {"input_ids": ids[:, cut:], "position_ids": positions[:, cut:]}
        options = packed_options((0, CUTS[-1] - cut), ids.device, prefix=kept)
        rest = model.base_model(**told, **options).last_hidden_state[0]
    except (TypeError, RuntimeError, ValueError, AttributeError, IndexError):
        return False
    return _same(rest, whole[cut:])


def _rope_type(config: Any) -> str:
    told = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return str(told.get("rope_type") or told.get("type") or "")


def beginning(model: Any, ids: Tensor, positions: Tensor, before: Beginning | None = None) -> Beginning:
    """Keys and values of tokens (1, N) for each layer, behind those of what stands before them.

    Args:
        model: a causal language model with packed attention.
        ids: (1, N).
        positions: (1, N).
        before: keys and values that the tokens see, those of a trained prefix too.

    Returns:
        For each layer keys and values (key-value heads, N, d), without those before.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    options = packed_options((0, ids.shape[1]), ids.device, prefix=before)
    model.base_model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, **options)
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers]
