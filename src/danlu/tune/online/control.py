"""How strongly the policy is held to the reference, and when it has run away from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from danlu.core.errors import RunError
from danlu.tune.callbacks import last_good

STEP = 0.2
"""Most relative error that one update of an adaptive β takes into account."""


class KLController:
    """The weight β of the divergence from the reference: fixed, or steered towards a target.

    Adaptive (Ziegler et al. 2019, arXiv:1909.08593, §2.2): e = clip((KL - target) / target, -0.2, 0.2) and
    β ← β (1 + e · answers / horizon).

    Args:
        beta: β at the start.
        target: mean divergence of an answer to aim at; None keeps β as it is.
        horizon: answers over which β follows.
    """

    def __init__(self, beta: float, *, target: float | None = None, horizon: int = 10_000) -> None:
        self.beta, self.target, self.horizon = beta, target, horizon

    def update(self, kl: float, answers: int) -> None:
        """Follow the divergence that was measured.

        Args:
            kl: mean over answers of the divergence summed over their tokens.
            answers: how many were measured, in all processes.
        """
        if self.target is None:
            return
        error = min(max((kl - self.target) / self.target, -STEP), STEP)
        self.beta *= 1 + error * answers / self.horizon

    def state(self) -> dict[str, float]:
        """What a checkpoint must keep."""
        return {"beta": self.beta}

    def load(self, state: Mapping[str, float]) -> None:
        """Go on from :meth:`state`."""
        self.beta = float(state["beta"])


def explodes(kl: float, limit: float) -> bool:
    """Whether a divergence is no number or beyond the limit."""
    return not math.isfinite(kl) or kl > limit


def stop_if_exploded(kl: float, limit: float, step: int, folder: Path) -> None:
    """Refuse to go on with a policy that has left the reference behind: its rewards mean nothing any more.

    Args:
        kl: mean over answers of the divergence summed over their tokens.
        limit: most that is taken.
        step: optimizer steps made.
        folder: the run directory.

    Raises:
        RunError: naming the step and the last good checkpoint.
    """
    if not explodes(kl, limit):
        return
    raise RunError(
        f"the divergence from the reference became {kl:.4g} at step {step}, more than {limit:g}",
        where=str(folder),
        hint="Lower learning_rate or hold the model more strongly to the reference (a larger KL weight). "
        + last_good(folder, step),
    )
