"""Reward modelling: the better answer gets the higher number (Bradley and Terry 1952; Ouyang et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.tune.batches import Batch
from danlu.tune.objectives.pairs import build, count

if TYPE_CHECKING:
    from danlu.tune.learner import Learner

__all__ = ["NEEDS", "build", "count", "loss"]

NEEDS = frozenset({"value_head"})


def loss(learner: Learner, batch: Batch) -> Tensor:
    """Σ -log σ(r_chosen - r_rejected - margin), r being the value head's number at the last token of an answer.

    The margin (Touvron et al. 2023, Llama 2) is the row's own; 0 where it brings none.
    """
    rewards = learner.numbers(learner.see(batch), batch["ends"]).view(-1, 2)
    difference = rewards[:, 0] - rewards[:, 1]
    learner.tally.add(
        accuracy=difference > 0, margin=difference, reward_chosen=rewards[:, 0], reward_rejected=rewards[:, 1]
    )
    return -F.logsigmoid(difference - torch.nan_to_num(batch["values"])).sum()
