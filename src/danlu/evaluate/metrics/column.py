"""What a metric is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from danlu.core.errors import UsageError
from danlu.evaluate.metrics.words import mostly_chinese
from danlu.evaluate.statistics import (
    Aggregate,
    Floats,
    Interval,
    jackknife_interval,
    mean_of_first,
    percentile_interval,
    wilson_interval,
)


class Pairs:
    """Predictions beside their references, in dataset order.

    Args:
        predictions: the answers.
        references: what was wanted, one for each; None where nobody knows.
        fields: further columns of the file, by name, one value for each row.

    Raises:
        UsageError: when there are no predictions, or not equally many of both; on use, when a metric needs
            references or a field that are not there.
    """

    def __init__(
        self,
        predictions: Sequence[str],
        references: Sequence[str] | None,
        fields: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        if references is not None and len(predictions) != len(references):
            raise UsageError(f"{len(predictions)} predictions cannot be compared with {len(references)} references")
        if not predictions:
            raise UsageError("there is nothing to measure: no predictions")
        self.predictions = tuple(predictions)
        self._references = None if references is None else tuple(references)
        self.fields = dict(fields or {})

    def __len__(self) -> int:
        return len(self.predictions)

    @property
    def references(self) -> tuple[str, ...]:
        """What was wanted, one for each prediction."""
        if self._references is None:
            raise UsageError(
                "there are no references to compare the predictions with",
                hint="Name their column with --reference-column, or choose metrics that need none.",
            )
        return self._references

    def numbers(self, field: str) -> Floats:
        """A further column as numbers, shape (n,).

        Raises:
            UsageError: when there is no such column, or one of its values is no number.
        """
        if field not in self.fields:
            known = ", ".join(self.fields) or "none"
            raise UsageError(f"there is no column {field!r}", hint=f"Further columns of these predictions: {known}.")
        try:
            return np.array([float(value) for value in self.fields[field]])
        except (TypeError, ValueError) as error:
            raise UsageError(f"the column {field!r} does not hold numbers only ({error})") from error

    def each(self, score: Callable[[str, str], float]) -> list[float]:
        """``score(prediction, reference)`` of every row."""
        return [score(prediction, reference) for prediction, reference in zip(self.predictions, self.references)]

    @cached_property
    def chinese(self) -> bool:
        """Whether at least half of the references (without any: of the predictions) hold an ideograph."""
        return mostly_chinese(self.predictions if self._references is None else self._references)


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One metric over all rows.

    Attributes:
        name: as in result files, for instance ``bleu-4``.
        rows: per-row values, shape (n,), in the unit of the score.
        protocol: what exactly was computed; two scores compare only if this is equal.
        scale: the largest possible value, 100 or 1; 0 where there is none, as for a perplexity.
        kind: ``mean`` of the rows; ``share`` of rows that are right (rows are 0 or ``scale``);
            ``corpus``: an aggregate of summed statistics; ``pool``: a property of all answers together.
        statistics: shape (n, k), summed before ``aggregate``; the rows themselves for a mean.
            For a pool: the scores that leave one row out, shape (n, 1).
        aggregate: sums of shape (…, k) and n → values of shape (…).
        fixed: the score itself, where it is not ``aggregate`` of the sums to the last digit.
    """

    name: str
    rows: Floats
    protocol: str
    scale: float = 100.0
    kind: Literal["mean", "share", "corpus", "pool"] = "mean"
    statistics: Floats | None = field(default=None, repr=False)
    aggregate: Aggregate = mean_of_first
    fixed: float | None = None

    @property
    def summed(self) -> Floats:
        """The statistics that are resampled, shape (n, k)."""
        return self.rows[:, None] if self.statistics is None else self.statistics

    @property
    def value(self) -> float:
        """The score. A mean is ``float(np.mean(list))``, bit for bit as the older tools take it."""
        if self.fixed is not None:
            return self.fixed
        if self.statistics is None:
            return float(np.mean(self.rows))
        return float(self.aggregate(self.statistics.sum(axis=0), len(self.rows)))

    @property
    def resampled(self) -> bool:
        """Whether the interval is a bootstrap over rows."""
        return self.kind in ("mean", "corpus")

    def interval(self, sums: Floats) -> Interval:
        """The 95 % interval: Wilson for a share, jackknife for a pool, else a bootstrap over rows.

        Args:
            sums: the statistics summed over each resample, shape (resamples, k); ignored by the others.
        """
        if self.kind == "share":
            right = int((self.rows > 0).sum())
            unit = wilson_interval(right, len(self.rows))
            return Interval(unit.low * self.scale, unit.high * self.scale, unit.method)
        if self.kind == "pool":
            wide = jackknife_interval(self.value, self.summed[:, 0])
            return Interval(max(0.0, wide.low), min(self.scale or wide.high, wide.high), wide.method)
        return percentile_interval(self.aggregate(sums, len(self.rows)))


def mean_column(name: str, rows: ArrayLike, protocol: str, scale: float = 100.0) -> Column:
    """A column whose score is the mean of its rows."""
    return Column(name, np.asarray(rows, dtype=np.float64), protocol, scale)


def share_column(name: str, right: list[bool], protocol: str, scale: float = 100.0) -> Column:
    """A column whose score is the share of rows that are right."""
    return Column(name, np.asarray(right, dtype=np.float64) * scale, protocol, scale, "share")
