"""Metrics by name, and the two sets people ask for.

``compat`` has the numbers of ChatGLM-Efficient-Tuning and LLaMA-Factory digit for digit; ``standard`` has
corpus scores with signatures and intervals. Single metrics and single scores can be asked for by name, see
:mod:`danlu.evaluate.metrics.choosing`. Another package adds metrics through the entry-point group
``danlu.metrics``: a function ``(Pairs) -> tuple[Column, ...]`` whose keyword-only parameters are its options.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from danlu.core.registry import Registry
from danlu.evaluate.metrics.choosing import choose, columns_of
from danlu.evaluate.metrics.column import Column, Pairs
from danlu.evaluate.statistics import Interval, bootstrap_sums

__all__ = ["METRICS", "METRIC_SETS", "Column", "Measurement", "Pairs", "Score", "measure"]

_ROOM = "danlu.evaluate.metrics"
_COMPAT, _STANDARD = f"{_ROOM}.compat", f"{_ROOM}.standard"

METRICS = Registry(
    "metric",
    {
        "compat-rouge": f"{_COMPAT}:rouge",
        "compat-bleu": f"{_COMPAT}:bleu",
        "compat-accuracy": f"{_COMPAT}:accuracy",
        "bleu": f"{_STANDARD}:bleu",
        "chrf": f"{_STANDARD}:chrf",
        "rouge-word": f"{_STANDARD}:rouge_words",
        "rouge-char": f"{_STANDARD}:rouge_characters",
        "exact-match": f"{_STANDARD}:exact_match",
        "accuracy": f"{_STANDARD}:accuracy",
        "f1": f"{_STANDARD}:token_f1",
        "distinct": f"{_STANDARD}:distinct",
        "set-f1": f"{_ROOM}.labels:set_f1",
        "label-f1": f"{_ROOM}.labels:label_f1",
        "self-bleu": f"{_ROOM}.self_bleu:self_bleu",
        "regex": f"{_ROOM}.form:regex",
        "length": f"{_ROOM}.form:length",
        "keywords": f"{_ROOM}.form:keywords",
        "layout": f"{_ROOM}.form:layout",
        "language": f"{_ROOM}.form:language",
        "json": f"{_ROOM}.structured:json",
        "json-schema": f"{_ROOM}.structured:json_schema",
        "pii": f"{_ROOM}.privacy:pii",
        "calibration": f"{_ROOM}.calibration:calibration",
        "bertscore": f"{_ROOM}.embeddings:bertscore",
        "cosine": f"{_ROOM}.embeddings:cosine",
        "perplexity": f"{_ROOM}.perplexity:perplexity",
    },
)

METRIC_SETS: dict[str, tuple[str, ...]] = {
    "compat": ("compat-accuracy", "compat-bleu", "compat-rouge"),
    "standard": ("bleu", "chrf", "rouge-word", "rouge-char", "exact-match", "accuracy", "f1", "distinct"),
}


@dataclass(frozen=True, slots=True)
class Score:
    """One number with what is needed to judge it.

    Attributes:
        name: the metric.
        value: the score.
        low: lower end of the 95 % interval.
        high: upper end.
        n: rows it was taken over.
        protocol: what exactly was computed.
        interval: how the interval was made.
        scale: the largest possible value, 100 or 1; 0 where there is none.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    protocol: str
    interval: str
    scale: float = 100.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """All scores of one set of answers.

    Attributes:
        metric_set: the name of the set, or ``custom``.
        scores: in the order of the set.
        columns: the same with per-row values, for paired comparison.
    """

    metric_set: str
    scores: tuple[Score, ...]
    columns: tuple[Column, ...] = field(repr=False)

    def means(self) -> dict[str, float]:
        """``name → value``, for result files and for choosing the best checkpoint."""
        return {score.name: score.value for score in self.scores}

    def rows(self) -> list[dict[str, float]]:
        """For each row ``name → value`` (four digits), for the predictions file."""
        table = np.round(np.stack([column.rows for column in self.columns], axis=1), 4).tolist()
        names = [column.name for column in self.columns]
        return [dict(zip(names, values)) for values in table]

    def __getitem__(self, name: str) -> Score:
        for score in self.scores:
            if score.name == name:
                return score
        raise KeyError(name)


def measure(
    predictions: Sequence[str],
    references: Sequence[str] | None,
    metrics: str | Iterable[str] = "compat",
    *,
    seed: int = 42,
    options: Mapping[str, Any] | None = None,
    fields: Mapping[str, Sequence[Any]] | None = None,
) -> Measurement:
    """Score answers against references.

    Args:
        predictions: the answers, in dataset order.
        references: what was wanted, one for each answer; None where no metric needs them.
        metrics: the name of a set, a metric or a score; or several, as a list or with commas.
        seed: of the intervals.
        options: options of the metrics; each goes to every metric that has it.
        fields: further columns of the predictions, for metrics that ask for one.

    Raises:
        UsageError: for an unknown name or option, no rows, or unequal numbers of rows.
        MissingDependency: when an optional package is needed and absent.
    """
    choices, label = choose(metrics, METRICS, METRIC_SETS)
    pairs = Pairs(predictions, references, fields)
    columns = tuple(columns_of(choices, METRICS, pairs, options or {}))
    scores = []
    for column, interval in zip(columns, _intervals(columns, seed)):
        scores.append(
            Score(
                column.name,
                column.value,
                interval.low,
                interval.high,
                len(pairs),
                column.protocol,
                interval.method,
                column.scale,
            )
        )
    return Measurement(label, tuple(scores), columns)


def _intervals(columns: Sequence[Column], seed: int) -> list[Interval]:
    """The interval of each column; all of them from one set of resamples."""
    stacked = [column.summed for column in columns if column.resampled]
    sums = bootstrap_sums(np.concatenate(stacked, axis=1), seed=seed) if stacked else np.empty((0, 0))
    intervals, start = [], 0
    for column in columns:
        width = column.summed.shape[1] if column.resampled else 0
        intervals.append(column.interval(sums[:, start : start + width]))
        start += width
    return intervals
