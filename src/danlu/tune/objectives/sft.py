"""Supervised fine-tuning: the likelihood of the trained tokens, each given everything before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from danlu.data.tokens import TokenStore
from danlu.tune.batches import Batch, collate

if TYPE_CHECKING:
    from danlu.tune.learner import Learner


def build(store: TokenStore, members: Sequence[int]) -> Batch:
    """Sequences side by side; see :func:`danlu.tune.batches.collate`."""
    return collate(store, members)


def count(batch: Batch) -> int:
    """Trained tokens."""
    return len(batch["targets"])


def loss(learner: Learner, batch: Batch) -> Tensor:
    """Σ -log p(token) over the trained tokens."""
    return learner.cross_entropy(**batch)
