"""Identity preference optimization: the margin is pulled to 1 / (2 β) instead of to infinity (Azar et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from danlu.tune.batches import Batch
from danlu.tune.objectives.pairs import Answers, answers, build, count, tell

if TYPE_CHECKING:
    from danlu.tune.learner import Learner

__all__ = ["NEEDS", "build", "count", "loss"]

NEEDS = frozenset({"reference"})
BETA = 0.1


def loss(learner: Learner, batch: Batch) -> Tensor:
    """Σ (h - 1 / (2 β))², plus ``pref_ftx`` times the mean -log p of the better answer.

    h is the difference of log π - log π_ref of the two answers, each per token: with sums, as in the paper
    (arXiv:2310.12036, eq. 17), β would have to follow the length of the answers. TRL does the same.
    """
    options = learner.settings.preference
    beta = BETA if options.pref_beta is None else options.pref_beta
    found = answers(learner, batch)
    ratios = found.mean - Answers(batch["reference"], found.tokens).mean
    tell(learner, beta * ratios, found.log_p)
    return ((ratios[:, 0] - ratios[:, 1] - 1 / (2 * beta)) ** 2 - options.pref_ftx * found.mean[:, 0]).sum()
