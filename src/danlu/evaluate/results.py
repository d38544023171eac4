"""Scores as they are named in result files and shown on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.table import Table

from danlu.core import console
from danlu.core.results import metrics_block
from danlu.evaluate.metrics import Measurement, Score

Number = int | float


def prefixed(
    scores: Mapping[str, Number],
    split: str,
    *,
    runtime: float | None = None,
    samples: int | None = None,
    steps: int | None = None,
) -> dict[str, Number]:
    """Add the split to every key, and the speed of the run.

    Args:
        scores: ``bleu-4 → value`` …; keys that already have the prefix keep it.
        split: ``eval``, ``predict`` or ``train``.
        runtime: seconds it took.
        samples: rows that were processed.
        steps: batches that were processed.

    Returns:
        ``eval_bleu-4``, … and ``eval_runtime``, ``eval_samples_per_second``, ``eval_steps_per_second``,
        rounded as transformers rounds them.
    """
    start = f"{split}_"
    values = {key if key.startswith(start) else start + key: value for key, value in scores.items()}
    if runtime is not None:
        values[f"{split}_runtime"] = round(runtime, 4)
        for name, count in (("samples", samples), ("steps", steps)):
            if count is not None and runtime > 0:
                values[f"{split}_{name}_per_second"] = round(count / runtime, 3)
    return values


def print_metrics(split: str, values: Mapping[str, Number]) -> None:
    """Print :func:`metrics_block` to standard output."""
    console.out.print(metrics_block(split, values), markup=False, soft_wrap=True)


def scores_table(measurement: Measurement, title: str | None = None) -> Table:
    """Metric, value, 95 % interval and n of every score, to print."""
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True, style="accent")
    table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for score in measurement.scores:
        table.add_row(score.name, number(score.value, score.scale), interval(score), str(score.n))
    return table


def print_scores(measurement: Measurement, title: str | None = None) -> None:
    """Print the table, and below it how each number was made, so that it can be made again."""
    console.out.print(scores_table(measurement, title))
    for score in measurement.scores:
        console.out.print(f"{score.name}: {score.protocol}; interval: {score.interval}", style="quiet", soft_wrap=True)


def number(value: float, scale: float = 100.0) -> str:
    """A score as it is shown: two digits on a scale of 100, four on a scale of 1 or none."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.2f}" if scale > 1 else f"{value:.4f}"


def interval(score: Score) -> str:
    """``low–high`` of a score."""
    return f"{number(score.low, score.scale)}–{number(score.high, score.scale)}"
