"""What transformers leaves out of a GGUF file's metadata: widths of heads, stretched positions, ends of answers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from danlu.core.errors import ModelError

LLAMA3_CONTEXT = 8192
"""Length that Llama 3 was pretrained with; its files do not always say it."""


BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_down.bias"}
"""Options of a configuration that only the presence of a tensor tells."""


def complete(config: Any, fields: Mapping[str, Any], tensors: Collection[str], factors: Sequence[float] | None) -> Any:
    """Put into a configuration what transformers does not read from a GGUF file.

    Args:
        config: as transformers makes it; it is changed.
        fields: the metadata of the file.
        tensors: names of its tensors.
        factors: the tensor ``rope_freqs.weight``, or None.

    Raises:
        ModelError: when positions are stretched in a way that transformers cannot compute.
    """
    prefix = fields["general.architecture"]
    width = fields.get(f"{prefix}.attention.key_length")
    if width is not None and config.model_type in ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe"):
        config.head_dim = width
    for name, tensor in BIASES.items():
        if hasattr(config, name):
            setattr(config, name, tensor in tensors)
    width = fields.get(f"{prefix}.expert_feed_forward_length")
    if width is not None and hasattr(config, "moe_intermediate_size"):
        config.moe_intermediate_size = width
    known = getattr(config, "rope_parameters", None) or {}
    if "rope_theta" in known:  # families without rotary positions have none, some have several kinds of layers
        said = {key.removeprefix(f"{prefix}.rope."): value for key, value in fields.items()}
        config.rope_parameters = {**known, **stretched(said, factors, known["rope_theta"])}
    ends = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    stops = sorted({number for number in ends if number is not None})
    if stops:
        config.eos_token_id = stops if len(stops) > 1 else stops[0]
    return config


def stretched(rope: Mapping[str, Any], factors: Sequence[float] | None, base: float) -> dict[str, Any]:
    """``rope_parameters`` beyond the base, from the keys below ``rope.`` and the tensor of factors."""
    original = rope.get("scaling.original_context_length")
    if factors is not None:
        return llama3(list(factors), base, original or LLAMA3_CONTEXT)
    kind = rope.get("scaling.type", "none")
    if kind == "none":
        return {}
    if kind not in ("linear", "yarn"):
        raise ModelError(f"the file stretches rotary positions by {kind!r}, which danlu cannot read")
    found: dict[str, Any] = {"rope_type": kind, "factor": rope["scaling.factor"]}
    if kind == "yarn" and original:
        found["original_max_position_embeddings"] = original
    return found


def llama3(factors: list[float], base: float, original: int) -> dict[str, Any]:
    """The parameters of Llama 3's stretching, from what each frequency is divided by.

    Between its ends, ``1 / f = (1 - s) / factor + s`` with ``s = (t - low) / (high - low)`` for ``t`` turns of the
    pair within the original context: ``s`` is linear in ``t``, and two pairs give ``low`` and ``high``.

    Raises:
        ModelError: when fewer than two pairs lie between.
    """
    count, factor = len(factors), round(max(factors), 4)
    turns = [original / (2 * math.pi * base ** (pair / count)) for pair in range(count)]
    between = [
        (turn, (1 / value - 1 / factor) / (1 - 1 / factor))
        for turn, value in zip(turns, factors)
        if 1.001 < value < factor * 0.999
    ]
    if len(between) < 2:
        raise ModelError("the file stretches rotary positions in a way that danlu cannot read (rope_freqs.weight)")
    (first, most), *_, (last, least) = between
    slope = (most - least) / (first - last)
    low = last - least / slope
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": round(low, 3),
        "high_freq_factor": round(low + 1 / slope, 3),
        "original_max_position_embeddings": original,
    }
