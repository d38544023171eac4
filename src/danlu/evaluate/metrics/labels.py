"""F1 of sets of units or items, and of class labels."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from danlu.core.errors import UsageError
from danlu.evaluate.metrics.column import Column, Pairs, mean_column
from danlu.evaluate.metrics.words import NORMALISATION, content_units, normalise
from danlu.evaluate.statistics import Floats

MOST_CLASSES = 200
"""More different labels than this are free text, not classes."""


def set_f1(pairs: Pairs, *, separator: str = "") -> tuple[Column, ...]:
    """F1 of the sets of characters (Latin words whole), or of the items of a list.

    Args:
        pairs: answers and references.
        separator: characters that part the items of an answer, for instance ``、,;``; by default units are compared.
    """
    rows = pairs.each(lambda mine, gold: _set_f1(_members(mine, separator), _members(gold, separator)))
    kind = f"items between any of {separator!r}" if separator else "tok:char"
    return (mean_column("set-f1", rows, f"f1 of sets|{kind}|{NORMALISATION}|mean of rows"),)


def _members(text: str, separator: str) -> frozenset[str]:
    if not separator:
        return frozenset(content_units(text))
    items = re.split(f"[{re.escape(separator)}\n]", text)
    return frozenset(item for item in map(normalise, items) if item)


def _set_f1(mine: frozenset[str], gold: frozenset[str]) -> float:
    """``2 |A ∩ B| / (|A| + |B|)`` × 100; 0 when both are empty."""
    return 200.0 * len(mine & gold) / (len(mine) + len(gold)) if mine & gold else 0.0


def label_f1(pairs: Pairs) -> tuple[Column, ...]:
    """Macro and micro F1 of answers that are class labels, over the classes of answers and references.

    Equal to scikit-learn's ``f1_score`` with ``zero_division=0`` (van Rijsbergen 1979; Sokolova and Lapalme 2009).

    Raises:
        UsageError: when there are so many different answers that they cannot be labels.
    """
    mine, gold = [normalise(text) for text in pairs.predictions], [normalise(text) for text in pairs.references]
    classes = sorted({*mine, *gold})
    if len(classes) > MOST_CLASSES:
        raise UsageError(
            f"{len(classes)} different answers and references are no class labels", hint="Use f1 or set-f1 for texts."
        )
    statistics = label_counts(mine, gold, classes)
    right = np.array([100.0 * (one == two) for one, two in zip(mine, gold)])
    protocol = f"{len(classes)} classes|{NORMALISATION}"
    return (
        Column(
            "macro-f1",
            right,
            f"mean of the F1 of each class|{protocol}",
            kind="corpus",
            statistics=statistics,
            aggregate=macro_f1,
        ),
        Column(
            "micro-f1",
            right,
            f"F1 of all classes together|{protocol}",
            kind="corpus",
            statistics=statistics,
            aggregate=micro_f1,
        ),
    )


def label_counts(mine: Sequence[str], gold: Sequence[str], classes: Sequence[str]) -> Floats:
    """For each row and class whether it is hit, answered and wanted; shape (n, 3 · classes)."""
    place = {name: number for number, name in enumerate(classes)}
    counts = np.zeros((len(mine), len(classes), 3))
    for row, (one, two) in enumerate(zip(mine, gold, strict=True)):
        counts[row, place[one], 0] = one == two
        counts[row, place[one], 1] = 1
        counts[row, place[two], 2] = 1
    return counts.reshape(len(mine), -1)


def class_f1(sums: Floats) -> Floats:
    """F1 of each class, 0 to 100, from summed counts of shape (…, 3 · classes)."""
    counts = sums.reshape(*sums.shape[:-1], -1, 3)
    return np.asarray(200 * counts[..., 0] / np.maximum(counts[..., 1] + counts[..., 2], 1e-12), dtype=np.float64)


def macro_f1(sums: Floats, _n: int) -> Floats:
    """The mean of the classes' F1; a class that a resample lacks altogether does not count in it."""
    counts = sums.reshape(*sums.shape[:-1], -1, 3)
    there = counts[..., 1] + counts[..., 2] > 0
    return np.asarray(class_f1(sums).sum(axis=-1) / np.maximum(there.sum(axis=-1), 1), dtype=np.float64)


def micro_f1(sums: Floats, _n: int) -> Floats:
    """F1 of the counts of all classes together: for one label a row, the share that is right."""
    counts = sums.reshape(*sums.shape[:-1], -1, 3).sum(axis=-2)
    return np.asarray(200 * counts[..., 0] / np.maximum(counts[..., 1] + counts[..., 2], 1e-12), dtype=np.float64)
