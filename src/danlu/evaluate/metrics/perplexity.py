"""How surprised a model is by texts, per token, word and byte, in windows that slide over long ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from danlu.core.console import progress
from danlu.core.errors import UsageError
from danlu.engine.protocol import Renderer, ScoreRequest
from danlu.evaluate.metrics.column import Column, Pairs
from danlu.evaluate.metrics.words import content_units
from danlu.evaluate.statistics import Floats

WINDOW = 1024
"""Tokens of a window unless more or fewer are asked for, or the model reads fewer."""


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of a text.

    Attributes:
        before: tokens that are read and not scored.
        scored: the tokens behind them.
    """

    before: tuple[int, ...]
    scored: tuple[int, ...]


class TokenScorer(Protocol):
    """What perplexity needs of a model.

    Attributes:
        name: of the model, for the record.
        context: most tokens that it reads.
    """

    name: str
    context: int

    def tokens(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the tokenizer writes in front of a text, and the tokens of the text."""

    def log_probs(self, windows: Sequence[Window]) -> Iterator[tuple[int, Sequence[float]]]:
        """(number of the window, natural logarithm of the probability of each of its scored tokens), in any order.

        Where ``before`` is empty the model's own token for a beginning stands there.
        """


class EngineScorer:
    """A model behind danlu's engine, as a :class:`TokenScorer`.

    Args:
        engine: with ``score``, ``renderer`` and ``context``, such as :class:`danlu.engine.local.LocalEngine`.
        name: of the model, for the record.
    """

    def __init__(self, engine: Any, name: str) -> None:
        self.engine, self.name = engine, name
        self.context: int = engine.context
        self._renderer: Renderer = engine.renderer

    def tokens(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the tokenizer writes in front of a text, and the tokens of the text."""
        empty, whole = self._renderer.continued("", [""])[0], self._renderer.continued(text, [""])[0]
        front = 0
        while front < len(empty) and whole[: front + 1] == empty[: front + 1]:
            front += 1
        return tuple(whole[:front]), tuple(whole[front:])

    def log_probs(self, windows: Sequence[Window]) -> Iterator[tuple[int, Sequence[float]]]:
        """Through :meth:`danlu.engine.protocol.Engine.score`."""
        requests = (
            ScoreRequest(str(number), window.before, (window.scored,), per_token=True)
            for number, window in enumerate(windows)
        )
        for scored in self.engine.score(requests):
            assert scored.per_token is not None
            yield int(scored.key), scored.per_token[0]


def windows_of(front: Sequence[int], tokens: Sequence[int], size: int, stride: int) -> list[Window]:
    """Windows in which every token of a text is scored exactly once.

    The first window begins with ``front`` and is as long as can be; each further one scores ``stride`` tokens and
    reads the tokens before them, ``size`` in all.
    """
    first = size - max(len(front), 1)
    found = [Window(tuple(front), tuple(tokens[:first]))] if tokens else []
    for start in range(first, len(tokens), stride):
        scored = tuple(tokens[start : start + stride])
        found.append(Window(tuple(tokens[max(0, start + len(scored) - size) : start]), scored))
    return found


def perplexity(
    pairs: Pairs, *, scorer: TokenScorer, window: int | None = None, stride: int | None = None
) -> tuple[Column, ...]:
    """``exp(-Σ log p / N)`` over all texts, N being their tokens, words or bytes; and bits per byte.

    Args:
        pairs: the texts; their references are not looked at.
        scorer: the model.
        window: tokens that the model reads at a time; by default :data:`WINDOW`, or its context if that is less.
        stride: tokens by which a window moves on; half a window by default.

    Raises:
        UsageError: for windows that the model cannot read, or when no text has a token.
    """
    size = min(WINDOW, scorer.context) if window is None else window
    step = max(size // 2, 1) if stride is None else stride
    if not 2 <= size <= scorer.context:
        raise UsageError(f"a window has 2 to {scorer.context} tokens with this model, not {size}", where="window")
    if not 1 <= step < size:
        raise UsageError(f"the stride is 1 to {size - 1} tokens in a window of {size}, not {step}", where="stride")
    read = [scorer.tokens(text) for text in pairs.predictions]
    if any(len(front) >= size for front, _ in read):
        raise UsageError(f"a window of {size} tokens has no room for what the tokenizer writes first", where="window")
    owners: list[int] = []
    windows: list[Window] = []
    for row, (front, tokens) in enumerate(read):
        pieces = windows_of(front, tokens, size, step)
        windows += pieces
        owners += [row] * len(pieces)
    if not windows:
        raise UsageError("there is nothing to measure: none of the texts has a token")
    losses = [0.0] * len(pairs)
    with progress("perplexity", len(windows)) as line:
        for number, log_probs in scorer.log_probs(windows):
            losses[owners[number]] -= math.fsum(log_probs)
            line.advance()
    counts = [
        (len(tokens), len(content_units(text)), len(text.encode("utf-8", "surrogatepass")))
        for (_, tokens), text in zip(read, pairs.predictions, strict=True)
    ]
    return columns_of_losses(losses, counts, f"model:{scorer.name}|window:{size}|stride:{step}")


def columns_of_losses(
    losses: Sequence[float], counts: Iterable[tuple[int, int, int]], protocol: str
) -> tuple[Column, ...]:
    """The scores from each text's summed negative log-likelihood and its tokens, words and bytes."""
    sums = np.array(losses, dtype=np.float64)
    table = np.array(list(counts), dtype=np.float64)
    found = []
    for name, place, aggregate in (
        ("perplexity", 0, exponential),
        ("perplexity-word", 1, exponential),
        ("perplexity-byte", 2, exponential),
        ("bits-per-byte", 2, bits),
    ):
        unit = ("token", "word", "byte")[place]
        statistics = np.stack([sums, table[:, place]], axis=1)
        rows = np.array([float(aggregate(row, 1)) for row in statistics])
        found.append(Column(name, rows, f"{protocol}|per {unit}", 0.0, "corpus", statistics, aggregate))
    return tuple(found)


def exponential(sums: Floats, _n: int) -> Floats:
    """``exp(loss / units)``; 0 where there are no units."""
    with np.errstate(over="ignore"):
        values = np.exp(sums[..., 0] / np.maximum(sums[..., 1], 1))
    return np.asarray(np.where(sums[..., 1] > 0, values, 0.0), dtype=np.float64)


def bits(sums: Floats, _n: int) -> Floats:
    """``loss / units / ln 2``; 0 where there are no units."""
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1) / math.log(2), dtype=np.float64)
