"""Perplexity by hand, and windows that score each token once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.core.errors import UsageError
from danlu.evaluate.metrics import measure
from danlu.evaluate.metrics.perplexity import Window, windows_of

PROBABILITIES = (0.5, 0.25, 0.125, 0.5)


class Letters:
    """A token for each character; the n-th of a text has the n-th probability, whatever window it is in."""

    name, context = "letters", 6

    def __init__(self, probabilities: Sequence[float] = PROBABILITIES, front: tuple[int, ...] = ()) -> None:
        self.probabilities, self.front = probabilities, front
        self.windows: list[Window] = []

    def tokens(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.front, tuple(range(len(text)))

    def log_probs(self, windows: Sequence[Window]) -> Iterator[tuple[int, Sequence[float]]]:
        self.windows = list(windows)
        for number in reversed(range(len(windows))):
            places = windows[number].scored
            yield number, [math.log(self.probabilities[place % len(self.probabilities)]) for place in places]


def scores(texts: list[str], scorer: Letters, **options: int) -> dict[str, float]:
    return measure(texts, None, "perplexity", options={"scorer": scorer, **options}).means()


def test_literal() -> None:
    means = scores(["abcd"], Letters())
    assert means["perplexity"] == pytest.approx(3.363586, abs=5e-7)
    assert means["bits-per-byte"] == pytest.approx(1.75)
    assert means["perplexity-byte"] == pytest.approx(2**1.75)
    assert means["perplexity-word"] == pytest.approx(2**7)  # abcd is one word


def test_words_and_bytes_of_chinese() -> None:
    means = scores(["你好"], Letters())  # 3 bits, 2 tokens, 2 words, 6 bytes
    assert means == {
        "perplexity": pytest.approx(2**1.5),
        "perplexity-word": pytest.approx(2**1.5),
        "perplexity-byte": pytest.approx(2**0.5),
        "bits-per-byte": pytest.approx(0.5),
    }


def test_it_is_a_mean_over_tokens_and_not_over_texts() -> None:
    measured = measure(["abcd", "ab", ""], None, "perplexity", options={"scorer": Letters()})
    assert measured["perplexity"].value == pytest.approx(2 ** (10 / 6))
    assert measured.columns[0].rows.tolist() == pytest.approx([2**1.75, 2**1.5, 0])
    assert measured["perplexity"].protocol == "model:letters|window:6|stride:3|per token"
    assert measured["perplexity"].low <= measured["perplexity"].value <= measured["perplexity"].high


def test_the_windows_slide() -> None:
    letters = Letters(front=(99,))
    whole = scores(["abcdefghijk"], letters, window=4, stride=2)
    assert letters.windows == [
        Window((99,), (0, 1, 2)),
        Window((1, 2), (3, 4)),
        Window((3, 4), (5, 6)),
        Window((5, 6), (7, 8)),
        Window((7, 8), (9, 10)),
    ]
    assert whole == scores(["abcdefghijk"], Letters(), window=6, stride=5)


@given(st.integers(0, 40), st.integers(2, 9), st.data())
def test_every_token_is_scored_once_and_a_window_is_never_too_long(length: int, size: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, size - 1))
    front = data.draw(st.sampled_from([(), (-1,)]))
    windows = windows_of(front, range(length), size, stride)
    assert [token for window in windows for token in window.scored] == list(range(length))
    for number, window in enumerate(windows):
        assert max(len(window.before), 1) + len(window.scored) <= size
        assert number == 0 or window.before == tuple(range(window.scored[0] - len(window.before), window.scored[0]))
        assert number == 0 or len(window.before) >= min(size - stride, window.scored[0])


@pytest.mark.parametrize("options", [{"window": 7}, {"window": 1}, {"window": 4, "stride": 4}, {"stride": 0}])
def test_windows_that_cannot_be_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="tokens"):
        scores(["abc"], Letters(), **options)


def test_nothing_to_measure_is_told() -> None:
    with pytest.raises(UsageError, match="none of the texts has a token"):
        scores(["", ""], Letters())
    with pytest.raises(UsageError, match="no room"):
        scores(["a"], Letters(front=(1, 2)), window=2, stride=1)
