"""Supervised fine-tuning and pre-training: the likelihood of the trained tokens, each given everything before it.

In ``pt`` every token of a text is trained, in ``sft`` those of the answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from danlu.tune.batches import Batch
from danlu.tune.batches import collate as build

if TYPE_CHECKING:
    from danlu.tune.learner import Learner

__all__ = ["build", "count", "loss"]


def count(batch: Batch) -> int:
    """Trained tokens."""
    return len(batch["targets"])


def loss(learner: Learner, batch: Batch) -> Tensor:
    """Σ -log p(token) over the trained tokens."""
    return learner.cross_entropy(batch)
