"""Losses of policy and value, token by token, and how far the policy has moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

KLKind = Literal["k1", "k2", "k3"]


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The policy's loss at every token, and what to tell of it.

    Attributes:
        values: (T), with gradients.
        clipped: whether the ratio was held back there (T); its mean is the clip fraction.
        moved: estimate (k3) of the divergence of the policy from the one that answered (T).
    """

    values: Tensor
    clipped: Tensor
    moved: Tensor


def policy_loss(
    log_p: Tensor, old_log_p: Tensor, advantages: Tensor, *, epsilon_low: float = 0.2, epsilon_high: float = 0.2
) -> PolicyLoss:
    """-min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A) with ρ = π / π_old (Schulman et al. 2017, arXiv:1707.06347, eq. 7).

    An ε_high of its own is "clip-higher" (Yu et al. 2025, DAPO, arXiv:2503.14476, §3.1).

    Args:
        log_p: of the tokens under the model as it is (T), with gradients.
        old_log_p: of the same tokens under the model that answered (T).
        advantages: (T).
        epsilon_low: how far a ratio counts below 1.
        epsilon_high: how far above 1.
    """
    log_ratio = log_p.float() - old_log_p.float()
    ratio = log_ratio.exp()
    plain = ratio * advantages
    held = ratio.clamp(1 - epsilon_low, 1 + epsilon_high) * advantages
    moved = kl_estimate(old_log_p, log_p.detach(), "k3")
    return PolicyLoss(-torch.minimum(plain, held), (held < plain).detach(), moved)


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """The value head's loss at every token.

    Attributes:
        values: (T), with gradients.
        clipped: whether the new value was held back there (T).
    """

    values: Tensor
    clipped: Tensor


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, cliprange_value: float) -> ValueLoss:
    """½ max((V - R)², (V_clipped - R)²), V_clipped being V within ``cliprange_value`` of what it was.

    The clipping is that of the first implementation of PPO (OpenAI baselines, ``ppo2``), not of the paper.

    Args:
        values: of the tokens under the model as it is (T), with gradients.
        old_values: under the model that answered (T).
        returns: what they should have been (T).
        cliprange_value: how far a value may move in one step.
    """
    held = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    plain, bound = (values - returns).square(), (held - returns).square()
    return ValueLoss(0.5 * torch.maximum(plain, bound), (bound > plain).detach())


def kl_estimate(log_p: Tensor, other: Tensor, kind: KLKind = "k3") -> Tensor:
    """Estimates of KL(p ‖ q) at tokens sampled from p (T), by J. Schulman, "Approximating KL divergence" (2020).

    With ρ = q / p at the sampled token: k1 = -log ρ (unbiased, may be negative), k2 = ½ (log ρ)² (biased, small
    variance), k3 = ρ - 1 - log ρ (unbiased, never negative).

    Args:
        log_p: of the tokens under p.
        other: log-probabilities of the same tokens under q.
        kind: which estimate.
    """
    log_ratio = other.float() - log_p.float()
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return 0.5 * log_ratio.square()
    return torch.expm1(log_ratio) - log_ratio
