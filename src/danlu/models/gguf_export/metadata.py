"""The configuration of a model as metadata of a GGUF file."""

from __future__ import annotations

import math
from typing import Any

from danlu.core.console import warn
from danlu.core.errors import ModelError
from danlu.models.gguf_export.architectures import Architecture

SCALINGS = ("linear", "yarn", "llama3")
"""Stretchings of rotary positions that the format can say, besides none."""


def add_metadata(writer: Any, config: Any, architecture: Architecture) -> None:
    """Write sizes, norms and rotary positions into a ``gguf.GGUFWriter``.

    Raises:
        ModelError: when the positions are stretched in a way that the format cannot say.
    """
    heads = config.num_attention_heads
    head_dim = head_width(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if getattr(config, "num_experts", None):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    _add_rope(writer, config, head_dim)
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and window < config.max_position_embeddings:
        warn(
            f"the model attends to the last {window:,} tokens; llama.cpp's {architecture.gguf} models attend to all, "
            "so answers to longer texts differ"
        )


def head_width(config: Any) -> int:
    """Numbers in each head's query."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _add_rope(writer: Any, config: Any, head_dim: int) -> None:
    rope = dict(config.rope_parameters)
    kind = rope.get("rope_type", "default")
    if kind not in ("default", *SCALINGS):
        raise ModelError(
            f"rotary positions of the kind {kind!r} cannot be written as GGUF by danlu",
            hint="Export safetensors and use llama.cpp's own converter.",
        )
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * (rope.get("partial_rotary_factor") or 1.0)))
    original = rope.get("original_max_position_embeddings")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(_scaling(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        _check_yarn(rope)
        writer.add_rope_scaling_orig_ctx_len(original or config.max_position_embeddings)
    if kind == "llama3":
        writer.add_rope_scaling_orig_ctx_len(original)


def _scaling(kind: str) -> Any:
    import gguf

    return {"linear": gguf.RopeScalingType.LINEAR, "yarn": gguf.RopeScalingType.YARN}[kind]


def _check_yarn(rope: dict[str, Any]) -> None:
    """Refuse what llama.cpp would compute with other numbers: it knows the usual ones only."""
    usual = {"beta_fast": 32, "beta_slow": 1, "attention_factor": 0.1 * math.log(rope["factor"]) + 1}
    for name, value in usual.items():
        given = rope.get(name)
        if given is not None and not math.isclose(given, value, rel_tol=1e-6):
            raise ModelError(
                f"YaRN with {name} {given:g} cannot be written as GGUF by danlu; the usual value is {value:g}",
                hint="Export safetensors and use llama.cpp's own converter.",
            )


def rope_factors(config: Any) -> list[float] | None:
    """What llama.cpp divides each rotary frequency by (its tensor ``rope_freqs.weight``), for Llama 3's stretching.

    Wavelengths beyond ``original / low_freq_factor`` are stretched by ``factor``, those below ``original /
    high_freq_factor`` are left alone, and those between by a blend (Llama 3.1's release; transformers'
    ``_compute_llama3_parameters``).
    """
    rope = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return None
    width = head_width(config)
    low, high, original = (
        rope[name] for name in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    factors = []
    for pair in range(0, width, 2):
        turns = original / (2 * math.pi * rope["rope_theta"] ** (pair / width))
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return factors
