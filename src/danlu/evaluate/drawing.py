"""Geometry of charts: numbers in, percentages of the plot out. The template draws them as SVG.

Coordinates are percentages of the plot's width (x, from the left) and height (y, from the top), so a chart
fits any width while its text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis, in percent of the plot."""

    place: float
    label: str


@dataclass(frozen=True, slots=True)
class LineChart:
    """A curve with its axes.

    Attributes:
        raw: the measured values as an SVG path.
        smooth: the smoothed curve as an SVG path; empty when there are too few points to smooth.
        evaluation: a second series as an SVG path; empty when there is none.
        dots: places of the evaluation's points.
        x_ticks: along the bottom.
        y_ticks: along the left, bottom first.
    """

    raw: str
    smooth: str
    evaluation: str
    dots: tuple[tuple[float, float], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar from zero with a whisker, in percent of the scale."""

    length: float
    low: float
    high: float


def line_chart(points: Points, evaluation: Points = ()) -> LineChart | None:
    """Lay out a loss curve; None with fewer than two finite points.

    Args:
        points: (step, value) in order of steps.
        evaluation: a second series over the same steps.
    """
    first, second = _finite(points), _finite(evaluation)
    if len(first) < 2:
        return None
    steps = [step for step, _ in (*first, *second)]
    values = [value for _, value in (*first, *second)]
    low = 0.0 if 0 <= min(values) < 0.6 * max(values) else min(values)
    y_ticks = nice_ticks(low, max(values), 5)
    x_low, x_high = min(steps), max(steps)
    bottom, top = y_ticks[0], max(y_ticks[-1], *values)

    def place(step: float, value: float) -> tuple[float, float]:
        x = 100 * (step - x_low) / (x_high - x_low or 1)
        return round(x, 2), round(100 - 100 * (value - bottom) / (top - bottom or 1), 2)

    def path(series: Points) -> str:
        return "M" + " L".join("{} {}".format(*place(*point)) for point in series) if series else ""

    smoothed = smooth(first) if len(first) >= 12 else []
    x_ticks = [tick for tick in nice_ticks(x_low, x_high, 6) if x_low <= tick <= x_high]
    return LineChart(
        path(first),
        path(smoothed),
        path(second),
        tuple(place(*point) for point in second),
        tuple(Tick(place(tick, 0)[0], f"{tick:g}") for tick in x_ticks),
        tuple(Tick(place(x_low, tick)[1], f"{tick:g}") for tick in y_ticks),
    )


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(step, value) for step, value in points if math.isfinite(value)]


def smooth(points: Points) -> list[tuple[float, float]]:
    """A curve without its noise: the mean of each point's neighbours, weighted by a Gaussian.

    Its width is a thirtieth of the curve, at least one point. Unlike a moving average of the past it does
    not lag behind a falling loss.
    """
    width = max(1.0, len(points) / 30)
    reach = math.ceil(3 * width)
    weights = [math.exp(-0.5 * (offset / width) ** 2) for offset in range(reach + 1)]
    smoothed = []
    for place, (step, _) in enumerate(points):
        near = range(max(0, place - reach), min(len(points), place + reach + 1))
        total = sum(weights[abs(other - place)] for other in near)
        smoothed.append((step, sum(points[other][1] * weights[abs(other - place)] for other in near) / total))
    return smoothed


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers that enclose low and high, 1, 2, 2.5 or 5 times a power of ten apart."""
    span = high - low
    if span <= max(1e-12, 1e-9 * abs(low), 1e-9 * abs(high)):  # one value: an axis around it
        span = max(abs(low), abs(high)) if abs(high) > 1e-12 else 1.0
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, max(last, first + 1) + 1)]


def bar(value: float, low: float, high: float, scale: float) -> Bar:
    """A score with its interval as a bar, cut to the scale; a score without one reaches as far as its interval."""
    whole = scale or max(value, high, 1.0)
    length, start, end = (
        round(min(100.0, max(0.0, 100 * number / whole)), 2) if math.isfinite(number) else 0.0
        for number in (value, low, high)
    )
    return Bar(length, start, end)


def spread_rows(points: Points, shown: int) -> list[tuple[float, float]]:
    """At most ``shown`` points at even distances, first and last included."""
    if len(points) <= shown:
        return list(points)
    last = len(points) - 1
    return [points[round(place * last / (shown - 1))] for place in range(shown)]
