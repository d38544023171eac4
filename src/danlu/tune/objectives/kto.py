"""Kahneman-Tversky optimization: single answers that are wanted or not (Ethayarajh et al. 2024, arXiv:2402.01306)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from danlu.tune.batches import Batch
from danlu.tune.objectives.pairs import answers, build, count

if TYPE_CHECKING:
    from danlu.tune.learner import Learner

__all__ = ["NEEDS", "build", "count", "loss"]

NEEDS = frozenset({"reference"})
BETA = 0.1


def loss(learner: Learner, batch: Batch) -> Tensor:
    """Σ λ_D (1 - σ(β (r - z))) over wanted and λ_U (1 - σ(β (z - r))) over unwanted answers, eq. 8.

    r = log π(y) - log π_ref(y) and z = max(0, mean of the same over answers to other prompts), a rough estimate of the
    KL divergence from the reference, over the batch, that carries no gradient.
    """
    options = learner.settings.preference
    beta = BETA if options.pref_beta is None else options.pref_beta
    found = answers(learner, batch)
    ratios = found.log_p - batch["reference"]
    z = ratios[:, 1].mean().clamp(min=0).detach()
    wanted = batch["values"] > 0.5
    above = ratios[:, 0] - z
    sign = torch.where(wanted, 1.0, -1.0)
    weight = torch.where(wanted, options.kto_chosen_weight, options.kto_rejected_weight)
    rewards = beta * ratios[:, 0]
    learner.tally.add(
        accuracy=(above > 0) == wanted, reward_chosen=rewards[wanted], reward_rejected=rewards[~wanted], kl=z.view(1)
    )
    return (weight * (1 - torch.sigmoid(sign * beta * above))).sum()
