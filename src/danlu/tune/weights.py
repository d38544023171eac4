"""Weights of whole models: their training precision, and writing and reading them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from danlu.core.errors import RunError
from danlu.tune.config import TrainConfig


def master_dtype(config: TrainConfig) -> torch.dtype:
    """Precision of trained weights: float32, so that small updates are not lost, unless asked otherwise."""
    return torch.bfloat16 if config.compute.pure_bf16 else torch.float32


def frozen_dtype(config: TrainConfig, model_dtype: torch.dtype) -> torch.dtype:
    """Precision of the weights that are not trained."""
    chosen = config.model.dtype
    if chosen != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[chosen]
    if config.compute.bf16 or config.compute.pure_bf16:
        return torch.bfloat16
    if config.compute.fp16:
        return torch.float16
    return torch.float32


def save_whole(model: Any, folder: Path) -> None:
    """Write config and sharded safetensors, each weight in the precision it is trained in."""
    model.save_pretrained(str(folder), max_shard_size="5GB")


@torch.no_grad()
def load_weights(model: Any, folder: Path) -> None:
    """Copy the weights of a folder into a model of the same shape, bit for bit.

    Raises:
        RunError: when the folder lacks a weight of the model.
    """
    from safetensors import safe_open

    wanted = dict(model.named_parameters())
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
    for file in files:
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118  (not a mapping)
                parameter = wanted.pop(name, None)
                if parameter is not None:
                    parameter.copy_(shard.get_tensor(name))
    if wanted:
        raise RunError(
            f"the checkpoint lacks {len(wanted)} weights, for instance {next(iter(wanted))}",
            where=str(folder),
            hint="It belongs to another model or was cut; resume from an older checkpoint.",
        )
