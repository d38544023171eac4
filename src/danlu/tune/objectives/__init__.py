"""Objectives: what is learnt. One module each, all with the same functions.

build(store, members) -> Batch     lay sequences of the token store out as tensors
count(batch) -> int                what the loss of a batch is divided by
loss(learner, batch) -> Tensor     the summed loss, a scalar that gradients flow through
"""

from __future__ import annotations

from danlu.core.registry import Registry

OBJECTIVES = Registry("objective", {"sft": "danlu.tune.objectives.sft"})
