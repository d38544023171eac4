"""The numbers of ChatGLM-Efficient-Tuning and LLaMA-Factory, digit for digit.

Both cut with jieba, score ROUGE with the package rouge-chinese and BLEU-4 over characters with NLTK's
smoothing method 3, round every row to four digits and take the mean. What that means for the numbers:
BLEU over characters flatters English, identical answers of fewer than four characters score below 100,
punctuation counts, and a mean of sentence scores is not corpus BLEU. The set ``standard`` has none of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from danlu.core.errors import UsageError
from danlu.evaluate.metrics.column import Column, Pairs, mean_column, share_column
from danlu.evaluate.metrics.ngrams import character_bleu, common_subsequence, ngrams
from danlu.evaluate.metrics.words import cut, segmenter

_SENTENCE_END = re.compile("([。！？?])([^”’])")
_SIX_DOTS = re.compile(r"(\.{6})([^”’])")


def rouge(pairs: Pairs, *, units: str = "word") -> tuple[Column, ...]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F as rouge-chinese 1.0.3 scores them, ×100, each row rounded.

    Args:
        pairs: answers and references.
        units: ``word`` as jieba cuts them, which is what the old tools do, or ``character``.

    Raises:
        UsageError: for other units.
    """
    if units not in ("word", "character"):
        raise UsageError(f"unknown units {units!r}", hint="Known: word, character.")
    split: Callable[[str], Sequence[str]] = cut if units == "word" else tuple
    rows = [rouge_row(*pair, split=split) for pair in zip(pairs.predictions, pairs.references)]
    name = segmenter().name if units == "word" else "char"
    protocol = f"as rouge-chinese 1.0.3|tok:{name}|mean of rounded rows"
    return tuple(
        mean_column(name, [row[place] for row in rows], protocol)
        for place, name in enumerate(("rouge-1", "rouge-2", "rouge-l"))
    )


def bleu(pairs: Pairs) -> tuple[Column, ...]:
    """BLEU-4 of each row over characters, ×100, each row rounded."""
    rows = pairs.each(lambda prediction, reference: round(character_bleu(prediction, reference) * 100, 4))
    return (mean_column("bleu-4", rows, "as nltk sentence_bleu|tok:letters|smooth:method3|mean of rounded rows"),)


def accuracy(pairs: Pairs) -> tuple[Column, ...]:
    """Share of rows whose answer begins with the reference, 0 to 1; empty references never match."""
    right = [
        bool(reference) and prediction.startswith(reference)
        for prediction, reference in zip(pairs.predictions, pairs.references)
    ]
    return (share_column("accuracy", right, "starts with the reference|tok:letters", 1.0),)


def rouge_row(
    prediction: str, reference: str, *, split: Callable[[str], Sequence[str]] = cut
) -> tuple[float, float, float]:
    """ROUGE-1, 2, L of one row, ×100 and rounded to four digits; zeros when either has no word.

    Args:
        prediction: the answer.
        reference: what was wanted.
        split: cuts a text into what the package gets as words.
    """
    hypothesis, gold = _words(split(prediction)), _words(split(reference))
    if not hypothesis or not gold:
        return 0.0, 0.0, 0.0
    scores = [
        _f_measure(len(mine & theirs), len(mine), len(theirs))
        for mine, theirs in ((set(ngrams(hypothesis, order)), set(ngrams(gold, order))) for order in (1, 2))
    ]
    scores.append(_f_measure(common_subsequence(gold, hypothesis), len(hypothesis), len(gold)))
    one, two, longest = (round(score * 100, 4) for score in scores)
    return one, two, longest


def _f_measure(overlap: int, predicted: int, expected: int) -> float:
    """The package's F: kept finite by 1e-8, so identical texts score 0.999999995."""
    precision = overlap / predicted if predicted else 0.0
    recall = overlap / expected if expected else 0.0
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _words(pieces: Sequence[str]) -> list[str]:
    """The words the package sees; none when there is only white space.

    It gets these pieces joined by spaces, breaks that into lines after sentence ends, and splits each
    line at single spaces. So six dots are torn off the word they end, and a line of white space alone,
    which needs a line break in the text, counts as one empty word.
    """
    joined = " ".join(pieces)
    words = joined.split()
    if not words or ("\n" not in joined and "......" not in joined):
        return words
    broken = _SIX_DOTS.sub(r"\1\n\2", _SENTENCE_END.sub(r"\1\n\2", joined)).rstrip()
    return [word for line in broken.split("\n") if line for word in (line.split() or [""])]
