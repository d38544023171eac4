"""Counting shared pieces of two sequences: n-grams and the longest common subsequence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TypeVar

Item = TypeVar("Item", bound=Hashable)


def ngrams(items: Sequence[Item], order: int) -> list[tuple[Item, ...]]:
    """All runs of ``order`` neighbours, in order; none when there are fewer items."""
    return list(zip(*(items[shift:] for shift in range(order))))


def shared(first: Counter[Item], second: Counter[Item]) -> int:
    """How many pieces two multisets have in common."""
    if len(first) > len(second):
        first, second = second, first
    return sum(min(count, second[piece]) for piece, count in first.items() if piece in second)


def common_subsequence(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence.

    Bit-parallel dynamic programming: one row of the table is one integer, a whole row is advanced by an
    addition (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"). Equal ends are taken off first.
    """
    start, end_first, end_second = 0, len(first), len(second)
    while start < end_first and start < end_second and first[start] == second[start]:
        start += 1
    while end_first > start and end_second > start and first[end_first - 1] == second[end_second - 1]:
        end_first, end_second = end_first - 1, end_second - 1
    ends = start + len(first) - end_first
    if start in (end_first, end_second):
        return ends
    places: dict[Hashable, int] = {}
    for bit, item in enumerate(first[start:end_first]):
        places[item] = places.get(item, 0) | (1 << bit)
    width = end_first - start
    row = (1 << width) - 1
    for item in second[start:end_second]:
        if matches := places.get(item):
            step = row & matches
            row = (row + step) | (row - step)
    # carries only move upwards, so the bits above the width can be ignored until here
    return ends + width - (row & ((1 << width) - 1)).bit_count()


def character_bleu(prediction: str, reference: str) -> float:
    """Sentence BLEU-4 over characters with geometric smoothing, between 0 and 1.

    Equal to NLTK's ``sentence_bleu([list(reference)], list(prediction))`` with smoothing method 3: the
    k-th order without a match counts as ``1 / (2^k · n-grams)``, orders longer than the text have one
    n-gram, and a text without any shared character scores 0 (Papineni et al. 2002; Chen and Cherry 2014).
    """
    if not prediction or not reference or set(prediction).isdisjoint(reference):
        return 0.0
    logs, misses = [], 0
    for order in range(1, 5):
        total = max(1, len(prediction) - order + 1)
        # substrings are the cheapest character n-grams
        matches = shared(_substrings(prediction, order), _substrings(reference, order)) if not misses else 0
        if not matches:
            misses += 1
        precision = matches / total if matches else 1 / (2**misses * total)
        logs.append(0.25 * math.log(precision))
    longer = len(prediction) > len(reference)
    brevity = 1.0 if longer else math.exp(1 - len(reference) / len(prediction))
    return brevity * math.exp(math.fsum(logs))


def _substrings(text: str, order: int) -> Counter[str]:
    return Counter([text[start : start + order] for start in range(len(text) - order + 1)])
