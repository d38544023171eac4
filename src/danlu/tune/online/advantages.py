"""How much better a token was than expected: generalised advantage estimation, and comparison within a group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Adds up a tensor over all processes."""


def lengths_of(owners: Tensor, answers: int) -> Tensor:
    """How many tokens each answer has (answers).

    Raises:
        ValueError: when the tokens are out of order or an answer has none.
    """
    lengths = torch.bincount(owners, minlength=answers)
    if len(lengths) != answers or bool((lengths == 0).any()):
        raise ValueError("every answer has at least one token, and every token belongs to an answer")
    if bool((owners.diff() < 0).any()):
        raise ValueError("the tokens of an answer lie side by side, in the order of the answers")
    return lengths


def token_rewards(scores: Tensor, kl: Tensor, owners: Tensor, beta: float) -> Tensor:
    """Reward of every token (T): -β KL, and on the last token of an answer its score on top.

    This is the reward of Ziegler et al. 2019 (arXiv:1909.08593, eq. 2), told token by token.

    Args:
        scores: of the answers (n).
        kl: estimate of the divergence from the reference at each token (T).
        owners: (T).
        beta: weight of the divergence.
    """
    last = lengths_of(owners, len(scores)).cumsum(0) - 1
    rewards = -beta * kl.float()
    return rewards.index_add(0, last, scores.float())


def gae(rewards: Tensor, values: Tensor, owners: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 11 and 16).

    δ_t = r_t + γ V_{t+1} - V_t and A_t = δ_t + γ λ A_{t+1}, where V and A behind the last token of an answer are 0.

    Args:
        rewards: of the tokens (T).
        values: what the value head expected before each token (T).
        owners: (T).
        gamma: discount γ.
        lam: λ; 1 compares with the whole return, 0 with one step.

    Returns:
        Advantages (T), and returns (T), which is what the values should have been: A_t + V_t.
    """
    lengths = lengths_of(owners, int(owners[-1]) + 1)
    ends = lengths.cumsum(0)
    place = torch.arange(len(owners), device=owners.device) - (ends - lengths)[owners]
    rewards, values = rewards.float(), values.float()
    following = torch.cat([values[1:], values.new_zeros(1)])
    following[ends - 1] = 0.0
    # answers as columns that end with zeros: the recursion runs over all of them at once
    grid = values.new_zeros(int(lengths.max()), len(lengths))
    grid[place, owners] = rewards + gamma * following - values
    running = grid.new_zeros(len(lengths))
    for step in reversed(range(len(grid))):
        running = grid[step] + gamma * lam * running
        grid[step] = running
    advantages = grid[place, owners]
    return advantages, advantages + values


def whiten(
    values: Tensor, *, shift_mean: bool = True, mask: Tensor | None = None, reduce: Reduce | None = None
) -> Tensor:
    """Numbers scaled to a variance of 1 and moved to a mean of 0.

    Mean and (unbiased) variance are those of all numbers of all processes.

    Args:
        values: any shape.
        shift_mean: false leaves the mean where it was.
        mask: numbers that count, true or false, the same shape; all by default. The others are scaled as well.
        reduce: adds up over processes; each must call this function, also one without numbers.
    """
    total = reduce or _alone
    values = values.float()
    counted = (values if mask is None else values[mask]).double()
    size, summed = total(torch.stack([counted.new_tensor(counted.numel()), counted.sum()])).unbind()
    mean = summed / size.clamp(min=1)
    # squares of differences, not a difference of squares: rewards of 1000 ± 1 keep their digits
    squares = total((counted - mean).square().sum())
    scale = (squares / (size - 1).clamp(min=1) + 1e-8).rsqrt()
    result = (values - mean.float()) * scale.float()
    return result if shift_mean else result + mean.float()


def _alone(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True, slots=True)
class GroupAdvantages:
    """What comparison within groups says.

    Attributes:
        values: advantage of each answer (n).
        groups: how many groups there are.
        even: groups whose answers all got the same reward: nothing can be learnt from them.
    """

    values: Tensor
    groups: int
    even: int


def group_advantages(
    rewards: Tensor, groups: Tensor, *, scale: bool = True, leave_one_out: bool = False, epsilon: float = 1e-4
) -> GroupAdvantages:
    """How much better each answer is than the others to the same prompt.

    (r - mean) / (std + ε), as GRPO has it (Shao et al. 2024, arXiv:2402.03300, §4.1.2); std is unbiased. In a group
    of equal rewards, or of one answer, every advantage is exactly 0.

    Args:
        rewards: of the answers (n).
        groups: number of the prompt that each answers (n), any integers, in any order.
        scale: divide by the standard deviation; without it hard and easy prompts weigh alike (Liu et al. 2025,
            "Dr. GRPO", arXiv:2503.20783).
        leave_one_out: compare with the mean of the other answers instead of all (RLOO: Ahmadian et al. 2024,
            arXiv:2402.14740, eq. 8; there without ``scale``).
        epsilon: keeps the division finite.
    """
    _, group = groups.unique(return_inverse=True)
    count = int(group.max()) + 1 if len(group) else 0
    exact = rewards.double()
    size = torch.bincount(group, minlength=count).double()
    mean = exact.new_zeros(count).index_add(0, group, exact) / size
    difference = exact - mean[group]
    highest = exact.new_full((count,), -torch.inf).scatter_reduce(0, group, exact, "amax")
    lowest = exact.new_full((count,), torch.inf).scatter_reduce(0, group, exact, "amin")
    even = highest == lowest
    squares = exact.new_zeros(count).index_add(0, group, difference.square())
    deviation = (squares / (size - 1).clamp(min=1)).sqrt()
    if leave_one_out:
        difference = difference * (size / (size - 1).clamp(min=1))[group]
    if scale:
        difference = difference / (deviation + epsilon)[group]
    difference = difference.masked_fill(even[group], 0.0)
    return GroupAdvantages(difference.to(torch.float32), count, int(even.sum()))
