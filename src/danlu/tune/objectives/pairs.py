"""What objectives over pairs of answers share: the log-probabilities of both, and what is told of them.

A batch of n pairs holds n prompts, each followed by its two answers (:func:`danlu.tune.batches.lay_out`); numbers of
answers come as (n, 2), the better one first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from danlu.tune.batches import Batch
from danlu.tune.batches import collate as build

if TYPE_CHECKING:
    from danlu.tune.learner import Learner

__all__ = ["Answers", "answers", "build", "count", "tell"]


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers under the model in training.

    Attributes:
        log_p: log-probability of each answer (n, 2).
        tokens: how many tokens each has (n, 2).
    """

    log_p: Tensor
    tokens: Tensor

    @property
    def mean(self) -> Tensor:
        """Log-probability per token (n, 2)."""
        return self.log_p / self.tokens


def count(batch: Batch) -> int:
    """Pairs."""
    return len(batch["values"])


def answers(learner: Learner, batch: Batch) -> Answers:
    """The answers of a batch under the model."""
    log_p, _ = learner.log_probs(learner.see(batch), batch)
    zeros = log_p.new_zeros(len(batch["ends"]))
    summed = zeros.index_add(0, batch["owners"], log_p)
    tokens = zeros.index_add(0, batch["owners"], log_p.new_ones(len(log_p)))
    return Answers(summed.view(-1, 2), tokens.view(-1, 2))


def tell(learner: Learner, rewards: Tensor, log_p: Tensor) -> None:
    """Gather accuracy and margin of implicit rewards (n, 2), and log-probabilities (n, 2), for the log."""
    margin = rewards[:, 0] - rewards[:, 1]
    learner.tally.add(
        accuracy=margin > 0,
        margin=margin,
        reward_chosen=rewards[:, 0],
        reward_rejected=rewards[:, 1],
        logps_chosen=log_p[:, 0],
        logps_rejected=log_p[:, 1],
    )
