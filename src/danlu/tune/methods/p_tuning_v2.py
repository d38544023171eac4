"""P-Tuning v2: trained keys and values stand before every sequence in every layer (Liu et al. 2021)."""

from __future__ import annotations

from typing import Any

from danlu.models.prefix import PrefixEncoder, PrefixShape
from danlu.tune.config import TrainConfig
from danlu.tune.methods import Tuned
from danlu.tune.methods.prompts import load, put_before, save

__all__ = ["apply", "load", "save"]


def apply(model: Any, config: TrainConfig) -> Tuned:
    """Freeze the model and make a prefix, or continue a given one."""
    options = config.prefix

    def make(base: Any) -> Any:
        return PrefixEncoder(
            PrefixShape.of(base.config, options.pre_seq_len),
            projection=options.prefix_projection,
            hidden_size=options.prefix_hidden_size,
            dropout=options.prefix_dropout,
        )

    return put_before(model, config, make)
