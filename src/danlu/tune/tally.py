"""Numbers gathered while losses are computed, to be told as means with the next log line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor


class Tally:
    """Sums and counts by name."""

    def __init__(self, sums: Mapping[str, Iterable[float]] | None = None) -> None:
        self.sums: dict[str, list[float]] = {name: list(pair) for name, pair in (sums or {}).items()}

    def add(self, **values: Tensor) -> None:
        """Add every number of some tensors; booleans count as 0 and 1."""
        for name, value in values.items():
            known = self.sums.setdefault(name, [0.0, 0.0])
            known[0] += float(value.detach().double().sum())
            known[1] += value.numel()

    def merge(self, other: Mapping[str, Iterable[float]]) -> None:
        """Add what another tally gathered."""
        for name, (total, count) in other.items():
            known = self.sums.setdefault(name, [0.0, 0.0])
            known[0] += total
            known[1] += count

    def means(self) -> dict[str, float]:
        """The mean of each name that has any numbers."""
        return {name: total / count for name, (total, count) in self.sums.items() if count}

    def clear(self) -> None:
        """Begin again."""
        self.sums.clear()
