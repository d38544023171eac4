"""Prefix tuning: keys and values before every layer, always made by a network (Li and Liang 2021, arXiv:2101.00190).

The prefix is MLP(P) with P (N, h) trained; only its result is needed afterwards.
"""

from __future__ import annotations

from typing import Any

from danlu.models.prefix import PrefixEncoder, PrefixShape
from danlu.tune.config import TrainConfig
from danlu.tune.methods import Tuned
from danlu.tune.methods.prompts import load, put_before, save

__all__ = ["apply", "load", "save"]

HIDDEN = 512
"""The paper's width for table-to-text."""


def apply(model: Any, config: TrainConfig) -> Tuned:
    """Freeze the model and make a prefix with its network, or continue a given one."""
    options = config.prefix

    def make(base: Any) -> Any:
        return PrefixEncoder(
            PrefixShape.of(base.config, options.pre_seq_len),
            projection=True,
            hidden_size=options.prefix_hidden_size or HIDDEN,
            dropout=options.prefix_dropout,
        )

    return put_before(model, config, make)
