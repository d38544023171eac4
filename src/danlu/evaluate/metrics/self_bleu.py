"""How alike the answers of one model are to one another."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

import numpy as np

from danlu.core.errors import UsageError
from danlu.evaluate.metrics.column import Column, Pairs
from danlu.evaluate.metrics.ngrams import ngrams
from danlu.evaluate.metrics.packages import sacrebleu_metrics
from danlu.evaluate.metrics.words import mostly_chinese

ORDER = 4


def self_bleu(pairs: Pairs) -> tuple[Column, ...]:
    """Mean sentence BLEU of each answer with all other answers as its references (Zhu et al. 2018).

    Equal to sacrebleu's sentence score with that many references, without its quadratic cost: of every n-gram
    only the two largest counts are kept, so that leaving out one answer is a look-up.

    Raises:
        UsageError: with a single answer.
    """
    if len(pairs) < 2:
        raise UsageError("self-bleu compares answers with one another, and there is only one")
    tokenizer = "zh" if mostly_chinese(pairs.predictions) else "13a"
    tool = sacrebleu_metrics().BLEU(tokenize=tokenizer, effective_order=True)
    texts = [str(tool._preprocess_segment(text)).split() for text in pairs.predictions]
    counts, totals = clipped_counts(texts)
    references = closest_lengths([len(text) for text in texts])
    rows = [
        tool.compute_bleu(
            correct=correct,
            total=total,
            sys_len=len(text),
            ref_len=reference,
            smooth_method="exp",
            effective_order=True,
            max_ngram_order=ORDER,
        ).score
        for correct, total, text, reference in zip(counts, totals, texts, references, strict=True)
    ]
    protocol = f"sacrebleu sentences|nrefs:{len(pairs) - 1}|tok:{tokenizer}|smooth:exp|eff:yes|mean of rows"
    return (Column("self-bleu", np.array(rows), protocol),)


def clipped_counts(texts: Sequence[Sequence[str]]) -> tuple[list[list[int]], list[list[int]]]:
    """For each text and order, n-grams that some other text has (each as often as that text), and all n-grams."""
    correct: list[list[int]] = [[] for _ in texts]
    totals: list[list[int]] = [[] for _ in texts]
    for order in range(1, ORDER + 1):
        pieces = [Counter(ngrams(text, order)) for text in texts]
        first: dict[tuple[str, ...], tuple[int, int]] = {}
        second: dict[tuple[str, ...], int] = {}
        for row, counter in enumerate(pieces):
            for piece, count in counter.items():
                best, owner = first.get(piece, (0, -1))
                if count > best:
                    first[piece] = (count, row)
                    second[piece] = best
                elif owner != row:
                    second[piece] = max(second.get(piece, 0), count)
        for row, counter in enumerate(pieces):
            totals[row].append(counter.total())
            correct[row].append(
                sum(
                    min(count, second[piece] if first[piece][1] == row else first[piece][0])
                    for piece, count in counter.items()
                )
            )
    return correct, totals


def closest_lengths(lengths: Sequence[int]) -> list[int]:
    """For each text the length of the other text that is nearest to its own, the shorter of two equally near."""
    order = sorted(lengths)
    found = []
    for own in lengths:
        place = bisect_left(order, own)
        near = [order[index] for index in (place - 1, place + 1) if 0 <= index < len(order)]
        found.append(min(near, key=lambda other: (abs(other - own), other)))
    return found
