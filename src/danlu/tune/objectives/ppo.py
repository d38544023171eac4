"""Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347) on the model's own answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from danlu.tune.batches import Batch
from danlu.tune.online.losses import policy_loss, value_loss

if TYPE_CHECKING:
    from danlu.tune.learner import Learner

NEEDS = frozenset({"value_head", "rollout"})


def count(batch: Batch) -> int:
    """Tokens of the answers."""
    return int(batch["units"])


def loss(learner: Learner, batch: Batch) -> Tensor:
    """Σ over the tokens of the clipped policy loss, plus ``vf_coef`` times the clipped value loss."""
    options = learner.settings.ppo
    seen = learner.see(batch)
    log_p, entropy = learner.log_probs(seen, batch, learner.settings.rollout.rollout_temperature)
    policy = policy_loss(
        log_p,
        batch["old_log_p"],
        batch["advantages"],
        epsilon_low=options.cliprange,
        epsilon_high=options.cliprange,
    )
    value = value_loss(
        learner.numbers(seen, batch["at"]),
        batch["old_values"],
        batch["returns"],
        cliprange_value=options.cliprange_value,
    )
    learner.tally.add(
        policy_loss=policy.values,
        value_loss=value.values,
        entropy=entropy,
        clip_fraction=policy.clipped,
        moved=policy.moved,
    )
    return (policy.values + options.vf_coef * value.values).sum()
