"""What one question is worth: from log-probabilities or from a reply."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from danlu.evaluate.benchmarks.extracting import MATCHES, extract
from danlu.evaluate.benchmarks.schema import Item, Protocol


def from_log_probs(protocol: Protocol, item: Item, log_probs: Sequence[float]) -> dict[str, Any]:
    """Scores of the choices' targets.

    Args:
        protocol: ``mode: continuation`` adds the choice by length.
        item: its labels, if it has any, decide what is right.
        log_probs: natural logarithms of the probability of each target, in the order of the choices.

    Returns:
        ``log_probs`` by letter; ``predicted``, the likeliest letter (the first of equals); ``mass``, the probability
        of all targets together; ``margin``, how much likelier it is than the next, in nats; ``confidence``, its share
        of the mass; ``correct`` and ``brier`` (sum over the choices of (share - right)², Brier 1950), if there are
        labels. ``continuation`` adds ``predicted_norm`` and ``correct_norm``: log-probability by characters of the
        choice, as lm-evaluation-harness' acc_norm.
    """
    by_letter = dict(zip(item.letters, map(float, log_probs), strict=True))
    ranked = sorted(by_letter.values(), reverse=True)
    predicted = max(by_letter, key=lambda letter: by_letter[letter])
    weights = {letter: math.exp(value - ranked[0]) for letter, value in by_letter.items()}
    shares = {letter: weight / sum(weights.values()) for letter, weight in weights.items()}
    found: dict[str, Any] = {
        "log_probs": {letter: round(value, 6) for letter, value in by_letter.items()},
        "predicted": predicted,
        "mass": round(sum(math.exp(value) for value in by_letter.values()), 6),
        "margin": round(ranked[0] - ranked[1], 6) if len(ranked) > 1 else 0.0,
        "confidence": round(shares[predicted], 6),
    }
    labels = set(item.answers)
    if labels:
        found["correct"] = int({predicted} == labels)
        found["brier"] = round(sum((share - (letter in labels)) ** 2 for letter, share in shares.items()), 6)
    if protocol.mode == "continuation":
        lengths = dict(zip(item.letters, map(len, item.choices), strict=True))
        likeliest = max(by_letter, key=lambda letter: by_letter[letter] / max(lengths[letter], 1))
        found["predicted_norm"] = likeliest
        if labels:
            found["correct_norm"] = int({likeliest} == labels)
    return found


def from_reply(protocol: Protocol, item: Item, reply: str) -> dict[str, Any]:
    """The answer in a reply: ``predicted`` (None: none was found, which is wrong), and ``correct`` with labels."""
    predicted = extract(protocol.extractor, reply, item)
    found: dict[str, Any] = {"predicted": predicted}
    if item.answers:
        found["correct"] = int(predicted is not None and bool(MATCHES[protocol.match](predicted, item)))
    return found


def expected_calibration_error(
    confidences: Sequence[float], correct: Sequence[float], *, bins: int = 10, equal_mass: bool = False
) -> float:
    """Mean distance of confidence and accuracy over bins, weighted by their size.

    Args:
        confidences: of the answers, 0 to 1.
        correct: whether they are right, 0 or 1.
        bins: how many.
        equal_mass: bins of as many answers each, as HELM's ``ece_10_bin``; otherwise of equal width, open below and
            closed above. Source: Naeini et al. 2015; Guo et al. 2017.
    """
    n = len(confidences)
    if not n:
        return math.nan
    pairs = sorted(zip(confidences, correct, strict=True))
    parts: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for place, pair in enumerate(pairs):
        index = place * bins // n if equal_mass else max(math.ceil(pair[0] * bins - 1e-12) - 1, 0)
        parts[min(index, bins - 1)].append(pair)
    gaps = (abs(sum(sure for sure, _ in part) - sum(right for _, right in part)) for part in parts if part)
    return sum(gaps) / n


def one_choice_brier(rows: Sequence[Mapping[str, Any]]) -> float:
    """Mean of (confidence - right)² of the chosen answers."""
    values = [(row["confidence"] - row["correct"]) ** 2 for row in rows]
    return sum(values) / len(values) if values else math.nan
