"""Odds-ratio preference optimization: fine-tuning and preference in one, without a reference (Hong et al. 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.tune.batches import Batch
from danlu.tune.objectives.pairs import answers, build, count, tell

if TYPE_CHECKING:
    from danlu.tune.learner import Learner

__all__ = ["build", "count", "loss"]

BETA = 0.1


def loss(learner: Learner, batch: Batch) -> Tensor:
    """Σ -log p(y_w) / |y_w| - β log σ(log odds(y_w) - log odds(y_l)), arXiv:2403.07691, eq. 6 and 7.

    odds = p / (1 - p) with p the geometric mean of the probabilities of an answer's tokens; log(1 - p) is computed as
    log(-expm1(log p)), which stays exact for p near 1.
    """
    options = learner.settings.preference
    beta = BETA if options.pref_beta is None else options.pref_beta
    found = answers(learner, batch)
    mean = found.mean.clamp(max=-1e-7)  # an answer that is certain has infinite odds
    odds = mean - torch.log(-torch.expm1(mean))
    tell(learner, beta * found.mean, found.log_p)
    learner.tally.add(log_odds_ratio=odds[:, 0] - odds[:, 1])
    return (-found.mean[:, 0] - beta * F.logsigmoid(odds[:, 0] - odds[:, 1])).sum()
