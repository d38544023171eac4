"""From answers to numbers: subjects, categories, groups and the average, each with n and an interval.

``macro`` is the mean over subjects of their accuracies (each subject counts alike), ``micro`` the share of right
answers (each question counts alike). Published numbers use either; both are always given, under their names.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from danlu.evaluate.benchmarks.schema import Average, Benchmark
from danlu.evaluate.benchmarks.scoring import expected_calibration_error, one_choice_brier
from danlu.evaluate.statistics import Floats, Interval, bootstrap_draws, percentile_interval, wilson_interval

Row = Mapping[str, Any]
Scope = Literal["subject", "category", "group", "all"]


@dataclass(frozen=True, slots=True)
class Number:
    """One number of a report.

    Attributes:
        scope: over what: a subject, a category, a group of subjects, or all.
        name: of the subject, category or group; ``all``.
        average: ``micro`` or ``macro``; they are the same for a subject, which has ``micro``.
        metric: ``accuracy``, or ``accuracy_norm`` (by length of the choices).
        value: 0 to 1.
        interval: 95 %.
        n: questions.
        subjects: how many subjects.
        headline: the one that the protocol's authors publish.
    """

    scope: Scope
    name: str
    average: Average
    metric: str
    value: float
    interval: Interval
    n: int
    subjects: int
    headline: bool = False


def numbers(benchmark: Benchmark, rows: Sequence[Row], headline: Average, *, seed: int = 42) -> list[Number]:
    """Every number over answered questions that have labels; none without labels.

    Intervals of micro averages are Wilson's, or a bootstrap over groups of questions that belong together; those of
    macro averages a bootstrap within each subject.
    """
    found: list[Number] = []
    for metric, key in (("accuracy", "correct"), ("accuracy_norm", "correct_norm")):
        by_subject: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            if key in row:
                by_subject[row["subject"]].append(row)
        subjects = [subject for subject in benchmark.subjects if subject in by_subject]
        if not subjects:
            continue
        parts = {subject: by_subject[subject] for subject in subjects}
        draws = {
            subject: _draws(part, key, seed + place) for place, (subject, part) in enumerate(parts.items())
        }  # each subject its own seed: equal sizes must not be drawn alike
        for scope, name, members in _scopes(benchmark, subjects):
            answered = [row for subject in members for row in parts[subject]]
            micro = _micro(answered, key, seed)
            kinds: list[tuple[Average, float, Interval]] = [("micro", *micro)]
            if scope != "subject":
                means = [_mean(parts[subject], key) for subject in members]
                spread = np.mean([draws[subject] for subject in members], axis=0)
                interval = percentile_interval(spread) if len(members) > 1 else micro[1]
                kinds.insert(0, ("macro", sum(means) / len(means), interval))
            for average, value, interval in kinds:
                first = scope == "all" and average == headline and metric == "accuracy"
                count = len(members)
                found.append(Number(scope, name, average, metric, value, interval, len(answered), count, first))
    return found


def _scopes(benchmark: Benchmark, subjects: Sequence[str]) -> Iterable[tuple[Scope, str, list[str]]]:
    yield "all", "all", list(subjects)
    categories = dict.fromkeys(benchmark.subjects[subject].category for subject in subjects)
    for category in filter(None, categories):
        yield "category", category, [s for s in subjects if benchmark.subjects[s].category == category]
    for group, names in benchmark.groups.items():
        if members := [subject for subject in subjects if subject in names]:
            yield "group", group, members
    for subject in subjects:
        yield "subject", subject, [subject]


def _mean(rows: Sequence[Row], key: str) -> float:
    return float(sum(row[key] for row in rows) / len(rows))


def _micro(rows: Sequence[Row], key: str, seed: int) -> tuple[float, Interval]:
    if len(_clusters(rows, key)) < len(rows):
        return _mean(rows, key), percentile_interval(_draws(rows, key, seed))
    return _mean(rows, key), wilson_interval(sum(row[key] for row in rows), len(rows))


def _draws(rows: Sequence[Row], key: str, seed: int) -> Floats:
    """Accuracies of samples drawn with replacement, a whole group of questions at a time."""
    return bootstrap_draws(np.array(_clusters(rows, key), dtype=np.float64), _ratio, seed=seed)


def _ratio(sums: Floats, n: int) -> Floats:
    del n  # groups differ in size: what counts are the questions drawn
    return np.asarray(sums[..., 0] / sums[..., 1], dtype=np.float64)


def _clusters(rows: Sequence[Row], key: str) -> list[tuple[int, int]]:
    """(right, questions) of each group; a question without one is its own."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        groups[(row["subject"], row["group"]) if row.get("group") else place].append(row[key])
    return [(sum(values), len(values)) for values in groups.values()]


def diagnostics(rows: Sequence[Row]) -> dict[str, float | int]:
    """What to look at before a number is believed.

    ``unparsed``: share of replies without an answer. ``mass``: mean probability of all targets together (little of it
    means that the model does not answer in this form). ``margin``: mean distance of the first two, in nats; ``ties``:
    questions without any. ``ece`` in ten bins of equal width, ``ece_mass`` of equal size; ``brier`` over all choices,
    ``brier_top`` of the chosen one.
    ``length``: share of replies that reached the limit. ``shots_dropped`` and ``cut``: questions that lost
    demonstrations, or their beginning, to the context. ``chance``: accuracy of guessing.
    """
    found: dict[str, float | int] = {"n": len(rows)}
    if not rows:
        return found
    replied = [row for row in rows if "reply" in row]
    judged = [row for row in rows if row.get("log_probs") is None]
    if judged:
        found["unparsed"] = _share(row["predicted"] is None for row in judged)
    if replied:
        found["length"] = _share(row.get("finish") == "length" for row in replied)
    for name in ("mass", "margin", "confidence", "brier"):
        values = [row[name] for row in rows if name in row]
        if values:
            found[name] = sum(values) / len(values)
    sure = [row for row in rows if "confidence" in row and "correct" in row]
    if sure:
        confidences, correct = [row["confidence"] for row in sure], [row["correct"] for row in sure]
        found["ece"] = expected_calibration_error(confidences, correct)
        found["ece_mass"] = expected_calibration_error(confidences, correct, equal_mass=True)
        found["brier_top"] = one_choice_brier(sure)
    choices = [row["choices"] for row in rows if row.get("choices")]
    if choices:
        found["chance"] = sum(1 / count for count in choices) / len(choices)
    if "margin" in found:
        found["ties"] = sum(row.get("margin") == 0 for row in rows)
    found["prompt_tokens"] = sum(row.get("prompt_tokens", 0) for row in rows)
    found["shots_dropped"] = sum(bool(row.get("shots_dropped")) for row in rows)
    found["cut"] = sum(bool(row.get("cut_tokens")) for row in rows)
    return {name: value for name, value in found.items() if not (isinstance(value, float) and math.isnan(value))}


def _share(flags: Iterable[bool]) -> float:
    values: NDArray[np.bool_] = np.array(list(flags), dtype=bool)
    return float(values.mean())
