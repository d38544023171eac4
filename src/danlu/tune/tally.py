"""Numbers gathered while losses are computed, to be told as means with the next log line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from danlu.tune.parallel.together import objects_of_all


class Tally:
    """Sums and counts by name.

    Attributes:
        sums: name → sum and count.
        rows: name → every number, in the order in which they came; None unless they are kept.
    """

    def __init__(self, sums: Mapping[str, Iterable[float]] | None = None, *, keep: bool = False) -> None:
        self.sums: dict[str, list[float]] = {name: list(pair) for name, pair in (sums or {}).items()}
        self.rows: dict[str, list[float]] | None = {} if keep else None

    def add(self, **values: Tensor) -> None:
        """Add every number of some tensors; booleans count as 0 and 1."""
        for name, value in values.items():
            known = self.sums.setdefault(name, [0.0, 0.0])
            known[0] += float(value.detach().double().sum())
            known[1] += value.numel()
            if self.rows is not None:
                self.rows.setdefault(name, []).extend(value.detach().double().flatten().tolist())

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
        if self.rows is not None:
            self.rows.clear()


def of_all(tally: Tally) -> Tally:
    """What all processes gathered."""
    whole = Tally()
    for sums in objects_of_all(tally.sums):
        whole.merge(sums)
    return whole
