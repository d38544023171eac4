"""The mean loss of a model on tokenised rows, outside of training."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from danlu.data.tokens import TokenStore
from danlu.models.prefix import split_prefix
from danlu.tune.learner import Learner, examine


@torch.no_grad()
def mean_loss(model: Any, store: TokenStore, batch_size: int, *, half: bool = False) -> float:
    """Mean -log p per trained token.

    Args:
        model: plain, with PEFT adapters, or with a prefix.
        store: the rows.
        batch_size: rows in one forward pass.
        half: compute in bfloat16 where that is safe.
    """
    inner, prefix = split_prefix(model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    own = inner.config._attn_implementation
    learner = Learner(inner, examine(inner), prefix).eval()
    total, count = 0.0, 0
    context = torch.autocast(inner.device.type, torch.bfloat16) if half else nullcontext()
    for start in range(0, len(store), batch_size):
        batch = learner.objective.build(store, range(start, min(start + batch_size, len(store))))
        with context:
            total += float(learner(**{name: value.to(inner.device) for name, value in batch.items()}))
        count += learner.objective.count(batch)
    inner.set_attn_implementation(own)
    return total / count
