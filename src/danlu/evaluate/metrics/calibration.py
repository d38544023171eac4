"""Whether a model is right as often as it says it is."""

from __future__ import annotations

import numpy as np

from danlu.core.errors import UsageError
from danlu.evaluate.metrics.column import Column, Pairs, mean_column
from danlu.evaluate.metrics.words import NORMALISATION, content_units
from danlu.evaluate.statistics import Floats


def calibration(
    pairs: Pairs, *, confidence: str = "confidence", correct: str = "", bins: int = 10
) -> tuple[Column, ...]:
    """Expected calibration error with bins of equal width and of equal mass, and the Brier score of the answer given.

    Args:
        pairs: answers, references, and the confidences as a further column.
        confidence: name of the column with the probability that the answer is right, 0 to 1.
        correct: name of a column that says whether it is (0 or 1); by default the answer is compared with the
            reference, after normalisation.
        bins: number of bins.

    Raises:
        UsageError: when a column is missing or holds no probabilities.
    """
    said = pairs.numbers(confidence)
    if not np.isfinite(said).all() or said.min() < 0 or said.max() > 1:
        raise UsageError(f"the column {confidence!r} holds values outside 0 to 1: these are no probabilities")
    if bins < 1:
        raise UsageError(f"{bins} bins hold nothing", where="bins")
    if correct:
        right = pairs.numbers(correct)
        if not np.isin(right, (0, 1)).all():
            raise UsageError(f"the column {correct!r} holds other values than 0 and 1")
        rule = f"correct:{correct}"
    else:
        right = np.array(pairs.each(lambda mine, gold: float(content_units(mine) == content_units(gold))))
        rule = f"equal to the reference|{NORMALISATION}"
    columns = [
        Column(
            name,
            np.abs(said - right),
            f"{bins} bins of equal {kind}|confidence:{confidence}|{rule}",
            1.0,
            "corpus",
            binned(said, right, places),
            error_of_bins,
        )
        for name, kind, places in (
            ("ece", "width", equal_width(said, bins)),
            ("ece-mass", "mass", equal_mass(said, bins)),
        )
    ]
    brier = mean_column("brier", (said - right) ** 2, f"confidence:{confidence}|{rule}|mean of rows", 1.0)
    return (*columns, brier)


def equal_width(confidence: Floats, bins: int) -> Floats:
    """The bin of each confidence when bins are ``(lo, hi]`` of width 1/bins; 0 is in the first."""
    # rounding first: 0.3 · 10 is a little more than 3 in binary and belongs to (0.2, 0.3]
    return np.asarray(np.maximum(np.ceil(np.round(confidence * bins, 9)) - 1, 0), dtype=np.float64)


def equal_mass(confidence: Floats, bins: int) -> Floats:
    """The bin of each confidence when bins hold equally many rows, as nearly as possible, sorted by confidence.

    Larger bins come first, as ``numpy.array_split`` has it.
    """
    places = np.empty(len(confidence))
    for number, rows in enumerate(np.array_split(np.argsort(confidence, kind="stable"), bins)):
        places[rows] = number
    return places


def binned(confidence: Floats, right: Floats, places: Floats) -> Floats:
    """``confidence - right`` of each row in the column of its bin; shape (n, bins)."""
    table = np.zeros((len(confidence), int(places.max()) + 1))
    table[np.arange(len(confidence)), places.astype(int)] = confidence - right
    return table


def error_of_bins(sums: Floats, n: int) -> Floats:
    """``Σ |confidence - right of the bin| / n`` (Naeini, Cooper, Hauskrecht 2015; Guo et al. 2017)."""
    return np.asarray(np.abs(sums).sum(axis=-1) / n, dtype=np.float64)
