"""Names of modules in models of 2023, and what the same weights are called today; either name finds them."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from danlu.core.console import note

FUSED = {
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "W_pack": ("q_proj", "k_proj", "v_proj"),
    "qkv": ("q_proj", "k_proj", "v_proj"),
}
"""One matrix then, three now."""

JOINT = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "query_key_value")
"""Three matrices now, one then."""

RENAMED = {
    "o_proj": "dense",
    "up_proj": "dense_h_to_4h",
    "down_proj": "dense_4h_to_h",
    "self_attn": "attention",
    "embed_tokens": "word_embeddings",
    "norm": "final_layernorm",
}
"""One matrix or part under two names."""


def known_names(name: str, present: Collection[str]) -> tuple[str, ...]:
    """The name itself if the model has it, else what it has become or once was, else the name again."""
    if name in present:
        return (name,)
    parts = FUSED.get(name, ())
    if parts and all(part in present for part in parts):
        return parts
    if JOINT.get(name) in present:
        _tell(name, JOINT[name])
        return (JOINT[name],)
    return (RENAMED[name],) if RENAMED.get(name) in present else (name,)


@cache
def _tell(name: str, whole: str) -> None:
    note(f"{name} is no layer of its own in this model: all of {whole} is trained")
