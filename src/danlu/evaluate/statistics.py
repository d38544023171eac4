"""Intervals and paired tests, vectorised and deterministic by seed.

A score over n rows is written as ``aggregate(sums, n)``: per-row *statistics* of shape (n, k) are summed
over the rows, and the aggregate turns sums of shape (…, k) into values of shape (…). A mean is the case
k = 1; corpus BLEU sums its n-gram counts. Resampling rows then is one matrix product for any score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]
Aggregate: TypeAlias = Callable[[Floats, int], Floats]

LEVEL = 0.95
RESAMPLES = 2000
EXACT_UP_TO = 14
"""Rows up to which a permutation test enumerates all 2^n cases instead of drawing some."""

_CELLS = 1 << 22


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval, in the unit of the score.

    Attributes:
        low: lower end.
        high: upper end.
        method: how it was made: bootstrap, wilson, jackknife or none.
        level: nominal coverage.
    """

    low: float
    high: float
    method: str
    level: float = LEVEL


@dataclass(frozen=True, slots=True)
class Difference:
    """Second score minus first, on the same rows.

    Attributes:
        value: the difference, in the unit of the score.
        interval: its paired bootstrap interval.
        p_value: two-sided, of the hypothesis that both answer equally well.
        test: what made the p-value.
    """

    value: float
    interval: Interval
    p_value: float
    test: str


def mean_of_first(sums: Floats, n: int) -> Floats:
    """The aggregate of a mean: the first statistic over the number of rows."""
    return np.asarray(sums[..., 0] / n, dtype=np.float64)


def as_column(values: ArrayLike) -> Floats:
    """Per-row values of shape (n,) as statistics of shape (n, 1); (n, k) stays."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 2) or not len(array):
        raise ValueError("values must have the shape (n,) or (n, k) with n > 0")
    return array[:, None] if array.ndim == 1 else array


def bootstrap_sums(statistics: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 42) -> Floats:
    """Sums over ``resamples`` samples of n rows drawn with replacement; (n, k) → (resamples, k).

    A sample is how often each row was drawn, so all sums are (multiplicities × statistics). The draws
    depend on n and the seed alone: scores of the same rows, taken together or apart, see the same samples.
    Source: Efron and Tibshirani 1993, chapter 6.
    """
    column = as_column(statistics)
    n = len(column)
    generator = np.random.default_rng(seed)
    parts = []
    for count in _portions(resamples, n):
        rows = generator.integers(0, n, size=(count, n)) + np.arange(count)[:, None] * n
        drawn = np.bincount(rows.ravel(), minlength=count * n).reshape(count, n)
        parts.append(drawn.astype(np.float64) @ column)
    return np.concatenate(parts)


def bootstrap_draws(
    statistics: ArrayLike,
    aggregate: Aggregate = mean_of_first,
    *,
    resamples: int = RESAMPLES,
    seed: int = 42,
) -> Floats:
    """Scores of ``resamples`` samples of n rows drawn with replacement; shape (resamples,)."""
    column = as_column(statistics)
    return aggregate(bootstrap_sums(column, resamples=resamples, seed=seed), len(column))


def percentile_interval(draws: Floats, *, level: float = LEVEL) -> Interval:
    """The (1 ± level)/2 quantiles of resampled scores."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), "bootstrap", level)


def _portions(total: int, width: int) -> Iterator[int]:
    """Split ``total`` rows of ``width`` cells into portions that fit in memory."""
    step = max(1, _CELLS // max(1, width))
    for start in range(0, total, step):
        yield min(step, total - start)


def bootstrap_interval(
    statistics: ArrayLike,
    aggregate: Aggregate = mean_of_first,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 42,
) -> Interval:
    """Percentile bootstrap: the (1 ± level)/2 quantiles of the resampled scores.

    Source: Efron and Tibshirani 1993, chapter 13; for corpus BLEU Koehn 2004. With a single row the
    interval is that row's value: nothing is known about the spread.
    """
    draws = bootstrap_draws(statistics, aggregate, resamples=resamples, seed=seed)
    return percentile_interval(draws, level=level)


def standard_error(values: ArrayLike) -> float:
    """Of a mean: the sample's standard deviation (with n - 1) over √n; NaN for a single value."""
    rows = np.asarray(values, dtype=np.float64)
    return float(rows.std(ddof=1) / math.sqrt(len(rows))) if len(rows) > 1 else math.nan


def wilson_interval(successes: int, n: int, *, level: float = LEVEL) -> Interval:
    """Score interval of a proportion; sensible at 0 and 1, where a bootstrap has no width.

    With z the normal quantile and p = successes / n:
    ``(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)``. Source: Wilson 1927; Brown, Cai, DasGupta 2001.

    Raises:
        ValueError: when n is not positive or successes are outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is not a proportion")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    middle = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else (middle - spread) / scale
    high = 1.0 if successes == n else (middle + spread) / scale
    return Interval(low, high, "wilson", level)


def jackknife_interval(value: float, left_out: ArrayLike, *, level: float = LEVEL) -> Interval:
    """Normal interval from the n scores that each leave one row out.

    ``value ± z √((n-1)/n · Σ (θᵢ - θ̄)²)``. For scores that a bootstrap biases, such as a share of
    different pieces: drawing a row twice adds no new piece. Source: Efron and Tibshirani 1993, chapter 11.
    """
    scores = np.asarray(left_out, dtype=np.float64)
    n = len(scores)
    z = NormalDist().inv_cdf((1 + level) / 2)
    error = math.sqrt((n - 1) / n * float(((scores - scores.mean()) ** 2).sum())) if n else 0.0
    return Interval(value - z * error, value + z * error, "jackknife", level)


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    aggregate: Aggregate = mean_of_first,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 42,
) -> Interval:
    """Percentile interval of (second - first), the same rows drawn for both.

    Source: Koehn 2004; Berg-Kirkpatrick, Burkett, Klein 2012.
    """
    one, two = _pair(first, second)
    both = np.concatenate([one, two], axis=1)
    width = one.shape[1]

    def difference(sums: Floats, n: int) -> Floats:
        return aggregate(sums[..., width:], n) - aggregate(sums[..., :width], n)

    return bootstrap_interval(both, difference, level=level, resamples=resamples, seed=seed)


def permutation_test(
    first: ArrayLike,
    second: ArrayLike,
    aggregate: Aggregate = mean_of_first,
    *,
    draws: int = 10_000,
    seed: int = 42,
) -> tuple[float, str]:
    """Two-sided paired permutation test: (p-value, name of the test).

    If both answer equally well, exchanging the two answers of any row changes nothing; p is the share of
    all exchanges whose difference is at least as large as the one seen. For a mean this is the sign-flip
    test. Rows with equal statistics do not matter. Up to :data:`EXACT_UP_TO` rows all exchanges are
    counted, else ``(1 + at least as large) / (1 + draws)``. Source: Fisher 1935; Noreen 1989; Phipson and
    Smyth 2010 for the added one.
    """
    one, two = _pair(first, second)
    n = len(one)
    changed = np.any(one != two, axis=1)
    steps = (two - one)[changed]
    total_one, total_two = one.sum(axis=0), two.sum(axis=0)
    seen = abs(float(aggregate(total_two, n) - aggregate(total_one, n)))
    threshold = seen - 1e-9 * max(1.0, seen)
    exact = len(steps) <= EXACT_UP_TO

    def extreme(exchanged: Floats) -> int:
        moved = exchanged @ steps
        size = np.abs(aggregate(total_two - moved, n) - aggregate(total_one + moved, n))
        return int((size >= threshold).sum())

    if exact:
        codes = np.arange(1 << len(steps))[:, None]
        return extreme(((codes >> np.arange(len(steps))) & 1).astype(np.float64)) / len(codes), "exact permutation"
    generator = np.random.default_rng(seed)
    hits = sum(
        extreme(generator.integers(0, 2, size=(count, len(steps)), dtype=np.uint8).astype(np.float64))
        for count in _portions(draws, len(steps))
    )
    return (1 + hits) / (1 + draws), f"permutation, {draws} draws"


def mcnemar_test(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar p-value of two yes/no scores on the same rows.

    Of the b + c rows where exactly one of the two is right, either is equally likely under the
    hypothesis: ``p = min(1, 2 · P(Binomial(b + c, ½) ≤ min(b, c)))``. Source: McNemar 1947.
    """
    if min(only_first, only_second) < 0:
        raise ValueError("counts cannot be negative")
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, float(2 * tail / (1 << n)) if n < 1000 else math.exp(math.log(2 * tail) - n * math.log(2)))


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    aggregate: Aggregate = mean_of_first,
    *,
    yes_or_no: bool = False,
    seed: int = 42,
) -> Difference:
    """Second minus first with interval and p-value; McNemar's test for 0/1 values, else a permutation."""
    one, two = _pair(first, second)
    n = len(one)
    value = float(aggregate(two.sum(axis=0), n) - aggregate(one.sum(axis=0), n))
    if yes_or_no:
        lost, won = (int(((a > 0) & (b <= 0)).sum()) for a, b in ((one[:, 0], two[:, 0]), (two[:, 0], one[:, 0])))
        p_value, test = mcnemar_test(lost, won), "McNemar"
    else:
        p_value, test = permutation_test(one, two, aggregate, seed=seed)
    return Difference(value, paired_bootstrap(one, two, aggregate, seed=seed), p_value, test)


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[Any, Any]:
    one, two = as_column(first), as_column(second)
    if one.shape != two.shape:
        raise ValueError(f"paired scores need the same rows: {one.shape} and {two.shape}")
    return one, two
