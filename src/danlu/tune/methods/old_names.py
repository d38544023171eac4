"""Names of modules in models of 2023, and what the same weights are called today."""

from __future__ import annotations

from collections.abc import Collection

FUSED = {
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "W_pack": ("q_proj", "k_proj", "v_proj"),
    "qkv": ("q_proj", "k_proj", "v_proj"),
}
"""One matrix then, three now."""


def known_names(name: str, present: Collection[str]) -> tuple[str, ...]:
    """The name itself if the model has it, else the parts it has become, else the name again."""
    parts = FUSED.get(name, ())
    return parts if name not in present and parts and all(part in present for part in parts) else (name,)
