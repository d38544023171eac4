"""Which models can be written as GGUF, as ``assets/gguf/architectures.yaml`` says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from danlu.core.errors import ModelError


@dataclass(frozen=True, slots=True)
class Architecture:
    """How llama.cpp keeps one family of models.

    Attributes:
        kind: ``model_type`` of config.json.
        gguf: ``general.architecture`` of the file.
        interleaved: projections whose rows are reordered, so that rotary pairs stand side by side.
        read_back: whether transformers reads such a file, so that it can be checked.
    """

    kind: str
    gguf: str
    interleaved: tuple[str, ...]
    read_back: bool


@cache
def architectures() -> dict[str, Architecture]:
    """Every family that can be written, by ``model_type``."""
    text = (files("danlu") / "assets" / "gguf" / "architectures.yaml").read_text(encoding="utf-8")
    return {
        kind: Architecture(kind, entry["gguf"], tuple(entry["interleaved"]), entry["read_back"])
        for kind, entry in yaml.safe_load(text)["architectures"].items()
    }


def architecture_of(config: Any) -> Architecture:
    """How a model with this configuration is written.

    Raises:
        ModelError: for a family that is not known, or a variant of one that the format cannot say.
    """
    known = architectures()
    found = known.get(config.model_type)
    if found is None:
        checked = ", ".join(kind for kind, item in known.items() if item.read_back)
        raise ModelError(
            f"a {config.model_type} model cannot be written as GGUF by danlu",
            hint=f"It writes what it can read back and compare: {checked}. For others export safetensors and use "
            "llama.cpp's own converter.",
        )
    if config.hidden_act not in ("silu", "swish"):
        raise ModelError(
            f"llama.cpp computes {found.gguf} models with the activation silu; this one has {config.hidden_act}",
            hint="Export safetensors instead.",
        )
    mixed = getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1
    if mixed or not getattr(config, "norm_topk_prob", True):
        raise ModelError(
            f"llama.cpp's {found.gguf} models have experts in every layer, with shares that add up to one",
            where=f"{config.model_type} with mlp_only_layers, decoder_sparse_step or norm_topk_prob",
            hint="Export safetensors instead.",
        )
    return found
