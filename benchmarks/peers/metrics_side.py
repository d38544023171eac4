"""The numbers of the old tools by the packages they use: jieba, rouge-chinese and NLTK, one row at a time.

LLaMA-Factory 0.9.5 and ChatGLM-Efficient-Tuning compute exactly this after a prediction; only their decoding of token
ids is left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import jieba
    import jieba.finalseg
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_chinese import Rouge

Rows = list[tuple[float, float, float, float]]


def load() -> None:
    """Read the dictionary, which both sides need and neither is timed for."""
    jieba.setLogLevel("CRITICAL")
    jieba.initialize()


def rows(predictions: Sequence[str], references: Sequence[str]) -> Rows:
    """ROUGE-1, ROUGE-2, ROUGE-L and BLEU-4 of each pair, ×100 and rounded to four digits."""
    return [_row(prediction, reference) for prediction, reference in zip(predictions, references, strict=True)]


def _row(prediction: str, reference: str) -> tuple[float, float, float, float]:
    mine, gold = list(jieba.cut(prediction)), list(jieba.cut(reference))
    found = {"rouge-1": 0.0, "rouge-2": 0.0, "rouge-l": 0.0}
    if " ".join(mine).split() and " ".join(gold).split():
        scores = Rouge().get_scores(" ".join(mine), " ".join(gold))[0]
        found = {name: scores[name]["f"] for name in found}
    bleu = sentence_bleu([list(reference)], list(prediction), smoothing_function=SmoothingFunction().method3)
    one, two, longest, four = (round(value * 100, 4) for value in (*found.values(), bleu))
    return one, two, longest, four
