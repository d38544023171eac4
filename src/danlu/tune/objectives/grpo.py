"""Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300): answers compared with each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from danlu.tune.batches import Batch
from danlu.tune.online.losses import kl_estimate, policy_loss

if TYPE_CHECKING:
    from danlu.tune.learner import Learner

NEEDS = frozenset({"rollout"})


def count(batch: Batch) -> int:
    """Tokens of the answers, or answers, as ``grpo_loss`` weighs."""
    return int(batch["units"])


def loss(learner: Learner, batch: Batch) -> Tensor:
    """Σ over the tokens of the clipped policy loss plus ``grpo_beta`` times the divergence (k3), weighted."""
    options = learner.settings.grpo
    log_p, entropy = learner.log_probs(learner.see(batch), batch, learner.settings.rollout.rollout_temperature)
    policy = policy_loss(
        log_p,
        batch["old_log_p"],
        batch["advantages"],
        epsilon_low=options.epsilon,
        epsilon_high=options.epsilon if options.epsilon_high is None else options.epsilon_high,
    )
    losses = policy.values
    if options.grpo_beta:
        losses = losses + options.grpo_beta * kl_estimate(log_p, batch["reference_log_p"], "k3")
    learner.tally.add(policy_loss=policy.values, entropy=entropy, clip_fraction=policy.clipped, moved=policy.moved)
    return (losses * batch["weights"]).sum()
