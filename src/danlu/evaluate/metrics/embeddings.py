"""Nearness in meaning, by the states of a local encoder: BERTScore, and the cosine of whole texts."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from danlu.core.console import progress
from danlu.core.errors import DataError
from danlu.core.files import expanded
from danlu.evaluate.metrics.column import Column, Pairs, mean_column
from danlu.evaluate.statistics import Floats

if TYPE_CHECKING:
    from danlu.models.encoders import EncodedText, Encoder

BLOCK = 64
"""Pairs whose states are in memory at one time."""

Weights = Callable[["EncodedText"], Floats]


def bertscore(
    pairs: Pairs, *, encoder: str | Path, layer: int | None = None, idf: bool = False, baseline: str | Path = ""
) -> tuple[Column, ...]:
    """BERTScore: each token is matched with the most similar one of the other text (Zhang et al. 2020).

    Args:
        pairs: answers and references.
        encoder: a local folder with an encoder; a folder of sentence-transformers will do.
        layer: whose states are compared; by default the one two thirds up (the eighth of twelve).
        idf: weigh tokens by how few references have them.
        baseline: a file of baselines (LAYER,P,R,F) by which the scores are rescaled; none by default.

    Raises:
        ModelError: when the encoder cannot be loaded or has no such layer.
        DataError: when the file of baselines has no line for the layer.
    """
    from danlu.models.encoders import Encoder

    opened = Encoder(encoder)
    layer = round(opened.layers * 2 / 3) if layer is None else layer
    weights = _idf_weights(opened, pairs.references) if idf else _plain_weights
    rows: list[tuple[float, float, float]] = []
    with progress("bertscore", len(pairs)) as line:
        for start in range(0, len(pairs), BLOCK):
            mine, gold = (part[start : start + BLOCK] for part in (pairs.predictions, pairs.references))
            encoded = opened.encode([*mine, *gold], layer=layer)
            for one, two in zip(encoded[: len(mine)], encoded[len(mine) :], strict=True):
                rows.append(matched(one, two, weights))
            line.advance(len(mine))
    table = np.array(rows)
    rescaled = "none"
    if baseline:
        lowest = _baseline(expanded(baseline), layer)
        table, rescaled = (table - lowest) / (1 - lowest), Path(baseline).name
    protocol = f"BERTScore[{opened.name},L{layer}]|idf:{'yes' if idf else 'no'}|baseline:{rescaled}|mean of rows"
    return tuple(
        mean_column(name, table[:, place], protocol, 1.0)
        for place, name in enumerate(("bertscore-p", "bertscore-r", "bertscore-f1"))
    )


def matched(mine: EncodedText, gold: EncodedText, weights: Weights) -> tuple[float, float, float]:
    """Precision, recall and F of one pair.

    With s the cosines of all tokens of the answer (rows) and the reference (columns) and w the weights, precision is
    ``Σ wᵢ maxⱼ sᵢⱼ / Σ wᵢ`` over the answer, recall the same over the reference, F their harmonic mean. What the
    tokenizer puts around a text has no weight of its own but may be matched, as in the authors' program. A text
    without any weight scores 0.
    """
    similarity = _unit(mine.vectors) @ _unit(gold.vectors).T
    scores = []
    for side, best in ((mine, similarity.max(axis=1)), (gold, similarity.max(axis=0))):
        weight = weights(side)
        total = float(weight.sum())
        scores.append(float((weight * best).sum()) / total if total > 0 else 0.0)
    precision, recall = scores
    if not all(weights(side).sum() > 0 for side in (mine, gold)):
        return 0.0, 0.0, 0.0
    together = precision + recall
    return precision, recall, 2 * precision * recall / together if together else 0.0


def _unit(vectors: NDArray[np.float32]) -> Floats:
    wide = vectors.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12), dtype=np.float64)


def _plain_weights(text: EncodedText) -> Floats:
    return np.where(text.special, 0.0, 1.0)


def _idf_weights(encoder: Encoder, references: Sequence[str]) -> Weights:
    """``log((n + 1) / (texts with the token + 1))`` over the references; what the tokenizer adds has none."""
    holders: Counter[int] = Counter()
    for text in references:
        holders.update(set(encoder.ids(text)[0]))
    encoder.cut = 0  # the same texts are counted again when they are encoded
    n = len(references)

    def weights(text: EncodedText) -> Floats:
        rare = np.array([math.log((n + 1) / (holders[token] + 1)) for token in text.ids])
        return np.where(text.special, 0.0, rare)

    return weights


def _baseline(path: Path, layer: int) -> Floats:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.reader(stream):
                if row and row[0].strip() == str(layer):
                    return np.array([float(cell) for cell in row[1:4]])
    except (OSError, ValueError) as error:
        raise DataError(f"the baselines cannot be read ({error})", where=str(path)) from error
    raise DataError(f"there is no baseline for layer {layer}", where=str(path))


def cosine(pairs: Pairs, *, encoder: str | Path) -> tuple[Column, ...]:
    """Mean cosine of the embeddings of answer and reference (Reimers and Gurevych 2019).

    Args:
        pairs: answers and references.
        encoder: a local folder of sentence-transformers; a plain encoder is averaged over its tokens.

    Raises:
        ModelError: when the encoder cannot be loaded.
    """
    from danlu.models.encoders import SentenceEncoder

    opened = SentenceEncoder(encoder)
    rows: list[float] = []
    with progress("embeddings", len(pairs)) as line:
        for start in range(0, len(pairs), BLOCK):
            mine, gold = (part[start : start + BLOCK] for part in (pairs.predictions, pairs.references))
            one, two = (_unit(opened.encode(texts)) for texts in (mine, gold))
            rows += (one * two).sum(axis=1).tolist()
            line.advance(len(mine))
    return (mean_column("cosine", rows, f"{opened.name}|{'+'.join(opened.steps)}|mean of rows", 1.0),)
