"""Scores to publish: corpus measures with signatures, honest in Chinese and in English.

BLEU and chrF see the text as it is, as sacrebleu's signatures say. The others see it after
:func:`~danlu.evaluate.metrics.words.normalise` (``norm:`` in the protocol) and count multisets of words as
jieba cuts them (``tok:jieba-…``) or of characters (``tok:char``: ideographs one by one, runs of Latin
letters or digits whole), so English is never scored letter by letter. Scores run from 0 to 100.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from danlu.core.errors import UsageError
from danlu.evaluate.metrics.column import Column, Pairs, mean_column, share_column
from danlu.evaluate.metrics.ngrams import common_subsequence, ngrams, shared
from danlu.evaluate.metrics.packages import sacrebleu_metrics
from danlu.evaluate.metrics.words import NORMALISATION, content_units, content_words, normalise, segmenter
from danlu.evaluate.statistics import Floats

_CHRF_ORDER, _CHRF_BETA = 6, 2
_TINY = 1e-16


TOKENIZERS = ("auto", "zh", "13a", "char", "intl", "none")


def bleu(pairs: Pairs, *, tokenize: str = "auto") -> tuple[Column, ...]:
    """Corpus BLEU by sacrebleu: tokenizer ``zh`` when most references hold ideographs, else ``13a``.

    Rows carry sentence BLEU for a reading order; the score and its interval come from the summed counts
    (Post 2018; resampling as in Koehn 2004).

    Args:
        pairs: answers and references.
        tokenize: one of sacrebleu's tokenizers, or ``auto``.

    Raises:
        UsageError: for another tokenizer.
    """
    if tokenize not in TOKENIZERS:
        raise UsageError(f"unknown tokenizer {tokenize!r}", hint=f"Known: {', '.join(TOKENIZERS)}.")
    if tokenize == "auto":
        tokenize = "zh" if pairs.chinese else "13a"
    metric = sacrebleu_metrics().BLEU(tokenize=tokenize, effective_order=True)
    scored = [metric.sentence_score(mine, [gold]) for mine, gold in zip(pairs.predictions, pairs.references)]
    statistics = np.array([[*row.counts, *row.totals, row.sys_len, row.ref_len] for row in scored], np.float64)
    corpus = sacrebleu_metrics().BLEU(tokenize=tokenize)
    score = corpus.corpus_score(list(pairs.predictions), [list(pairs.references)])
    return (
        Column(
            "bleu",
            np.array([row.score for row in scored]),
            f"sacrebleu {corpus.get_signature()}",
            kind="corpus",
            statistics=statistics,
            aggregate=corpus_bleu,
            fixed=float(score.score),
        ),
    )


def corpus_bleu(sums: Floats, _n: int) -> Floats:
    """BLEU-4 from summed counts, with sacrebleu's ``exp`` smoothing.

    Args:
        sums: shape (…, 10): matches and totals of orders 1-4, then predicted and reference length.

    Returns:
        Scores from 0 to 100, shape (…).
    """
    matches, totals, lengths = sums[..., :4], sums[..., 4:8], sums[..., 8:]
    missed = np.cumsum(matches == 0, axis=-1)
    kept = np.where(matches > 0, matches, 0.5**missed)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(kept / totals).mean(axis=-1)
        brevity = np.exp(np.minimum(0.0, 1 - lengths[..., 1] / lengths[..., 0]))
        scores = 100 * brevity * np.exp(logs)
    countable = (matches.sum(axis=-1) > 0) & (totals > 0).all(axis=-1)
    return np.where(countable, scores, 0.0)


def chrf(pairs: Pairs) -> tuple[Column, ...]:
    """ChrF (character n-grams up to 6, β = 2) over the corpus, equal to sacrebleu's (Popović 2015)."""
    metric = sacrebleu_metrics().CHRF()
    score = metric.corpus_score(list(pairs.predictions), [list(pairs.references)])
    statistics = np.array([_chrf_counts(*pair) for pair in zip(pairs.predictions, pairs.references)], np.float64)
    return (
        Column(
            "chrf",
            corpus_chrf(statistics, 1),
            f"sacrebleu {metric.get_signature()}",
            kind="corpus",
            statistics=statistics,
            aggregate=corpus_chrf,
            fixed=float(score.score),
        ),
    )


def _chrf_counts(prediction: str, reference: str) -> list[int]:
    mine, gold = "".join(prediction.split()), "".join(reference.split())
    counts = []
    for order in range(1, _CHRF_ORDER + 1):
        one, two = (
            Counter([text[start : start + order] for start in range(len(text) - order + 1)]) for text in (mine, gold)
        )
        counts += [one.total() if two else 0, two.total(), shared(one, two)]
    return counts


def corpus_chrf(sums: Floats, _n: int) -> Floats:
    """ChrF from summed counts.

    Args:
        sums: shape (…, 18): n-grams of the prediction, of the reference, and shared, for each order.

    Returns:
        Scores from 0 to 100, shape (…).
    """
    mine, gold, common = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    countable = (mine > 0) & (gold > 0)
    orders = np.maximum(countable.sum(axis=-1), 1)
    precision = np.where(countable, common / np.maximum(mine, 1), 0.0).sum(axis=-1) / orders
    recall = np.where(countable, common / np.maximum(gold, 1), 0.0).sum(axis=-1) / orders
    weight = _CHRF_BETA**2
    bottom = np.maximum(weight * precision + recall, _TINY)
    return np.asarray(100 * (1 + weight) * precision * recall / bottom, dtype=np.float64)


def rouge_words(pairs: Pairs) -> tuple[Column, ...]:
    """ROUGE-1, 2, L F over jieba's words."""
    return _rouge(pairs, content_words, "word", segmenter().name)


def rouge_characters(pairs: Pairs) -> tuple[Column, ...]:
    """ROUGE-1, 2, L F over characters, Latin words kept whole."""
    return _rouge(pairs, content_units, "char", "char")


def _rouge(pairs: Pairs, split: Callable[[str], Sequence[str]], suffix: str, units: str) -> tuple[Column, ...]:
    """F = 2PR/(P+R) of each row; n-grams clipped, L by longest common subsequence (Lin 2004)."""
    rows = [_rouge_row(split(mine), split(gold)) for mine, gold in zip(pairs.predictions, pairs.references)]
    protocol = f"f1|tok:{units}|{NORMALISATION}|mean of rows"
    return tuple(
        mean_column(f"rouge-{name}-{suffix}", [row[place] for row in rows], f"rouge-{name}|{protocol}")
        for place, name in enumerate(("1", "2", "l"))
    )


def _rouge_row(mine: Sequence[str], gold: Sequence[str]) -> tuple[float, float, float]:
    if tuple(mine) == tuple(gold):  # identical one-word answers have no bigram, and are not wrong for it
        full = 100.0 if mine else 0.0
        return full, full, full
    scores = []
    for order in (1, 2):
        one, two = Counter(ngrams(mine, order)), Counter(ngrams(gold, order))
        scores.append(_f_score(shared(one, two), one.total(), two.total()))
    longest = _f_score(common_subsequence(gold, mine), len(mine), len(gold))
    return scores[0], scores[1], longest


def _f_score(overlap: int, predicted: int, expected: int) -> float:
    """Harmonic mean of precision and recall, ×100: ``2 · overlap / (predicted + expected)``."""
    return 200.0 * overlap / (predicted + expected) if overlap else 0.0


def exact_match(pairs: Pairs) -> tuple[Column, ...]:
    """Share of answers that are the reference, after normalisation (as SQuAD has it, for two languages)."""
    right = [_compact(mine) == _compact(gold) for mine, gold in zip(pairs.predictions, pairs.references)]
    return (share_column("exact-match", right, f"equal|tok:char|{NORMALISATION}"),)


def accuracy(pairs: Pairs) -> tuple[Column, ...]:
    """Share of answers that begin with the reference, normalised, unit by unit ("A" is not "Apple")."""
    right = []
    for mine, gold in zip(pairs.predictions, pairs.references):
        answer, wanted = content_units(mine), content_units(gold)
        right.append(bool(wanted) and answer[: len(wanted)] == wanted)
    return (share_column("accuracy", right, f"starts with the reference|tok:char|{NORMALISATION}"),)


def token_f1(pairs: Pairs) -> tuple[Column, ...]:
    """F1 of the multisets of characters, Latin words whole (SQuAD in English, CMRC 2018 in Chinese)."""
    rows = []
    for mine, gold in zip(pairs.predictions, pairs.references):
        one, two = Counter(content_units(mine)), Counter(content_units(gold))
        rows.append(100.0 if one == two and one else _f_score(shared(one, two), one.total(), two.total()))
    return (mean_column("f1", rows, f"f1|tok:char|{NORMALISATION}|mean of rows"),)


def distinct(pairs: Pairs) -> tuple[Column, ...]:
    """Different over all n-grams of all answers together (Li et al. 2016): low means repetition."""
    texts = [content_units(prediction) for prediction in pairs.predictions]
    return tuple(_distinct(texts, order) for order in (1, 2))


def _distinct(texts: list[tuple[str, ...]], order: int) -> Column:
    pieces = [Counter(ngrams(text, order)) for text in texts]
    everything: Counter[tuple[str, ...]] = Counter()
    for counter in pieces:
        everything.update(counter)
    total, different = everything.total(), len(everything)
    # without one row its n-grams are gone, and those nobody else uses are no longer among the different
    own = [sum(everything[piece] == count for piece, count in counter.items()) for counter in pieces]
    left_out = [
        100.0 * (different - alone) / (total - counter.total()) if total > counter.total() else 0.0
        for counter, alone in zip(pieces, own)
    ]
    return Column(
        f"distinct-{order}",
        np.array([100.0 * len(counter) / counter.total() if counter else 0.0 for counter in pieces]),
        f"different / all {order}-grams|tok:char|{NORMALISATION}",
        kind="pool",
        statistics=np.array(left_out)[:, None],
        fixed=100.0 * different / total if total else 0.0,
    )


def _compact(text: str) -> str:
    """Normalised, and without the spaces that only part ideographs."""
    return " ".join(content_units(normalise(text)))
