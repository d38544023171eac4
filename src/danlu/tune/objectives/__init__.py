"""Objectives: what is learnt. One module each, all with the same names.

build(store, members) -> Batch     lay items of the token store out as tensors
count(batch) -> int                what the loss of a batch is divided by
loss(learner, batch) -> Tensor     the summed loss, a scalar that gradients flow through
NEEDS                              what else it asks for, a subset of :data:`KNOWN_NEEDS`; nothing by default
"""

from __future__ import annotations

from typing import Any

from danlu.core.registry import Registry

OBJECTIVES = Registry(
    "objective",
    {
        "pt": "danlu.tune.objectives.sft",
        "sft": "danlu.tune.objectives.sft",
        "rm": "danlu.tune.objectives.rm",
        "dpo": "danlu.tune.objectives.dpo",
        "ipo": "danlu.tune.objectives.ipo",
        "kto": "danlu.tune.objectives.kto",
        "orpo": "danlu.tune.objectives.orpo",
        "simpo": "danlu.tune.objectives.simpo",
        "ppo": "danlu.tune.objectives.ppo",
        "grpo": "danlu.tune.objectives.grpo",
    },
)

KNOWN_NEEDS = frozenset({"value_head", "reference", "rollout"})
"""``value_head``: a layer that turns hidden states into numbers. ``reference``: a column of the batch, (n, answers),
with the log-probability of each answer under the model as it was before training. ``rollout``: batches of answers that
the model gives while it trains, made by :mod:`danlu.tune.online.experience`; such an objective has no ``build``."""


def needs(objective: Any) -> frozenset[str]:
    """What an objective's module asks for."""
    found: frozenset[str] = getattr(objective, "NEEDS", frozenset())
    return found
