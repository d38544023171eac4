"""Simple preference optimization: log-probabilities per token, a target margin, no reference (Meng et al. 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from danlu.tune.batches import Batch
from danlu.tune.objectives.pairs import answers, build, count, tell

if TYPE_CHECKING:
    from danlu.tune.learner import Learner

__all__ = ["build", "count", "loss"]

BETA = 2.0


def loss(learner: Learner, batch: Batch) -> Tensor:
    """Σ -log σ(β (log p(y_w) / |y_w| - log p(y_l) / |y_l|) - γ), arXiv:2405.14734, eq. 6.

    ``pref_ftx`` adds the mean -log p of the better answer, as in dpo.
    """
    options = learner.settings.preference
    beta = BETA if options.pref_beta is None else options.pref_beta
    found = answers(learner, batch)
    rewards = beta * found.mean
    tell(learner, rewards, found.log_p)
    margin = rewards[:, 0] - rewards[:, 1] - options.simpo_gamma
    return (-F.logsigmoid(margin) - options.pref_ftx * found.mean[:, 0]).sum()
