"""The mean loss of a model on tokenised rows, outside of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from danlu.data.tokens import TokenStore
from danlu.models.prefix import split_prefix
from danlu.tune.learner import Learner, examine


@torch.no_grad()
def mean_loss(model: Any, store: TokenStore, members: Sequence[int], batch_size: int) -> float:
    """Mean -log p per trained token.

    Args:
        model: plain, with PEFT adapters, or with a prefix.
        store: tokenised rows.
        members: numbers of the sequences to measure.
        batch_size: rows in one forward pass.
    """
    inner, prefix = split_prefix(model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    own = inner.config._attn_implementation
    learner = Learner(inner, examine(inner), prefix).eval()
    total, count = 0.0, 0
    for start in range(0, len(members), batch_size):
        batch = learner.objective.build(store, members[start : start + batch_size])
        total += float(learner(**{name: value.to(inner.device) for name, value in batch.items()}))
        count += learner.objective.count(batch)
    inner.set_attn_implementation(own)
    return total / count
