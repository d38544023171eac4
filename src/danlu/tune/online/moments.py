"""Mean and deviation of all numbers seen so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class Moments:
    """Running mean and variance, put together from parts (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0.0, 0.0, 0.0

    def add(self, count: float, total: float, squares: float) -> None:
        """Take in more numbers.

        Args:
            count: how many.
            total: their sum.
            squares: the sum of their squared differences from their own mean.
        """
        if not count:
            return
        both = self.count + count
        difference = total / count - self.mean
        self.squares += squares + difference**2 * self.count * count / both
        self.mean += difference * count / both
        self.count = both

    @property
    def deviation(self) -> float:
        """The (unbiased) standard deviation; 1 as long as there are not two different numbers."""
        variance = self.squares / (self.count - 1) if self.count > 1 else 0.0
        return math.sqrt(variance) if variance > 0 else 1.0

    def state(self) -> dict[str, float]:
        """What a checkpoint must keep."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.count, self.mean, self.squares = (float(state[name]) for name in ("count", "mean", "squares"))
