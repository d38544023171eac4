"""Full tuning: every weight is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from danlu.tune.config import TrainConfig
from danlu.tune.methods import Tuned
from danlu.tune.weights import load_weights, master_dtype, save_whole


def apply(model: Any, config: TrainConfig) -> Tuned:
    """Train everything, in float32 unless ``pure_bf16`` asks otherwise."""
    model.requires_grad_(True)
    return Tuned(model.to(master_dtype(config)))


def save(tuned: Tuned, folder: Path) -> None:
    """Write the whole model."""
    save_whole(tuned.model, folder)


def load(tuned: Tuned, folder: Path) -> None:
    """Read the whole model back."""
    load_weights(tuned.model, folder)
