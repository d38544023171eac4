"""Adapters as the scripts of 2023 left them for ChatGLM2 and 3, for the tiny model of the family glm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SIZES = {  # rows and columns of the fused layers of the tiny model
    "self_attention.query_key_value": (128, 64),
    "self_attention.dense": (64, 64),
    "mlp.dense_h_to_4h": (192, 64),
    "mlp.dense_4h_to_h": (64, 96),
}


def old_lora(
    folder: Path,
    *,
    modules: tuple[str, ...] = ("self_attention.query_key_value",),
    layers: int = 3,
    rows: int | None = None,
    columns: int | None = None,
    safe: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Write an adapter of ChatGLM-Efficient-Tuning with random weights; its tensors."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(5)
    rank = settings.get("r", 4)
    state: dict[str, Any] = {}
    for layer in range(layers):
        for module in modules:
            height, width = SIZES[module]
            start = f"base_model.model.transformer.encoder.layers.{layer}.{module}"
            state[f"{start}.lora_A.weight"] = torch.randn(rank, columns or width, generator=generator) * 0.1
            state[f"{start}.lora_B.weight"] = torch.randn(rows or height, rank, generator=generator) * 0.1
    told = {
        "base_model_name_or_path": "THUDM/chatglm2-6b",
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 32.0,
        "lora_dropout": 0.1,
        "merge_weights": False,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": [module.rpartition(".")[2] for module in modules],
        "task_type": "CAUSAL_LM",
    }
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(told | settings))
    if safe:
        save_file(state, folder / "adapter_model.safetensors")
    else:
        torch.save(state, folder / "adapter_model.bin")
    return state


def old_prefix(
    folder: Path,
    *,
    length: int = 5,
    network: bool = False,
    width: int = 3 * 2 * 2 * 16,
    embedding: int | None = None,
    hidden: int = 64,
) -> dict[str, Any]:
    """Write a checkpoint of the official P-Tuning scripts with random weights; its tensors.

    The first generation's network begins narrow (``embedding``), that of the later ones as wide as it ends.
    """
    import torch

    generator = torch.Generator().manual_seed(6)
    first = (embedding or width) if network else width
    sizes: dict[str, tuple[int, ...]] = {"embedding.weight": (length, first)}
    if network:
        sizes |= {"trans.0.weight": (hidden, first), "trans.0.bias": (hidden,)}
        sizes |= {"trans.2.weight": (width, hidden), "trans.2.bias": (width,)}
    state = {
        f"transformer.prefix_encoder.{name}": torch.randn(size, generator=generator) * 0.3
        for name, size in sizes.items()
    }
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"model_type": "chatglm", "_name_or_path": "THUDM/chatglm2-6b"}))
    return state
