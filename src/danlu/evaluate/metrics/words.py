"""Text into units: words as jieba cuts them, and characters with Latin words kept whole.

jieba is imported at first use and its dictionary is kept in danlu's cache folder. The cut itself is our
own loop over jieba's dictionary and hidden Markov model: the same words as ``jieba.cut`` in its default
mode (a golden test compares them), in less time, because every candidate word is looked up once and runs
of unknown characters, which recur, are remembered.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from functools import lru_cache
from math import log
from typing import Any

from danlu.core.errors import MissingDependency
from danlu.core.workspace import cache_folder

NORMALISATION = "norm:nfkc-casefold-nopunct"
"""What :func:`normalise` does, as a part of metric signatures."""

_HAN = "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3040-\u30ff\u31f0-\u31ff"
_CHINESE = re.compile(f"[{_HAN}]")
_UNIT = re.compile(f"\\d+(?:[.,:/-]\\d+)+|[{_HAN}{_KANA}]|[^\\W_{_HAN}{_KANA}]+|\\S")


class Segmenter:
    """Cuts text into words exactly as ``jieba.cut(text)`` does (default mode, HMM on).

    Raises:
        MissingDependency: when jieba is not installed.
    """

    def __init__(self) -> None:
        jieba = _import_jieba()
        tokenizer = jieba.Tokenizer()
        tokenizer.tmp_dir = str(cache_folder("jieba"))
        tokenizer.initialize()
        self.name = f"jieba-{jieba.__version__}"
        self._frequencies: dict[str, int] = tokenizer.FREQ
        self._log_total = log(tokenizer.total)
        self._blocks = jieba.re_han_default
        self._spaces = jieba.re_skip_default
        finalseg = jieba.finalseg

        @lru_cache(maxsize=1 << 16)
        def unknown(run: str) -> tuple[str, ...]:
            return tuple(finalseg.cut(run))

        self._unknown = unknown

    def cut(self, text: str) -> list[str]:
        """The words of ``text``; joined together they are ``text`` again."""
        words: list[str] = []
        for number, block in enumerate(self._blocks.split(text)):
            if not block:
                continue
            if number % 2:  # a run of ideographs, letters and digits
                self._cut_block(block, words)
                continue
            for piece in self._spaces.split(block):
                if self._spaces.match(piece):
                    words.append(piece)
                else:
                    words.extend(piece)
        return words

    def _cut_block(self, block: str, words: list[str]) -> None:
        ends = self._best_ends(block)
        frequencies, start, length, pending = self._frequencies, 0, len(block), 0
        while start < length:
            end = ends[start]
            if end - start > 1:
                if pending < start:
                    self._flush(block[pending:start], frequencies, words)
                words.append(block[start:end])
                pending = end
            start = end
        if pending < length:
            self._flush(block[pending:], frequencies, words)

    def _best_ends(self, block: str) -> list[int]:
        """For each position, where the word ends that starts the likeliest cut of the rest.

        Candidates are the dictionary words at that position; scanning stops at the first string that
        is not even the beginning of one. Of equally likely candidates the longest wins.
        """
        length, get, log_total = len(block), self._frequencies.get, self._log_total
        route, ends = [0.0] * (length + 1), [0] * length
        for start in range(length - 1, -1, -1):
            end = start + 1
            frequency = get(block[start])
            # a lone character is a candidate when it has a frequency, or when nothing longer has one
            best, best_end = log(frequency or 1) - log_total + route[end], end
            alone = not frequency
            while frequency is not None and end < length:
                end += 1
                frequency = get(block[start:end])
                if frequency:
                    likelihood = log(frequency) - log_total + route[end]
                    if alone or likelihood >= best:
                        best, best_end, alone = likelihood, end, False
            route[start], ends[start] = best, best_end
        return ends

    def _flush(self, run: str, frequencies: dict[str, int], words: list[str]) -> None:
        """Characters that stood alone: a word the model of unknown words finds, or single characters."""
        if len(run) == 1:
            words.append(run)
        elif frequencies.get(run):
            words.extend(run)
        else:
            words.extend(self._unknown(run))


def _import_jieba() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import jieba
            import jieba.finalseg
    except ImportError as error:
        raise MissingDependency("jieba", "to cut Chinese text into words", "metrics") from error
    jieba.setLogLevel("CRITICAL")
    return jieba


@lru_cache(maxsize=1)
def segmenter() -> Segmenter:
    """The process-wide segmenter, made at first use (about half a second, once)."""
    return Segmenter()


@lru_cache(maxsize=1 << 14)
def cut(text: str) -> tuple[str, ...]:
    """The words of ``text`` as jieba cuts them; remembered, since references are scored again and again."""
    return tuple(segmenter().cut(text))


def has_chinese(text: str) -> bool:
    """Whether ``text`` holds at least one ideograph."""
    return _CHINESE.search(text) is not None


def mostly_chinese(texts: tuple[str, ...]) -> bool:
    """Whether at least half of the non-empty texts hold an ideograph; decides BLEU's tokenizer."""
    filled = [text for text in texts if text.strip()]
    return bool(filled) and 2 * sum(map(has_chinese, filled)) >= len(filled)


@lru_cache(maxsize=1 << 14)
def normalise(text: str) -> str:
    """Fold what is not content, and part the words by one space.

    Compatibility forms become ordinary ones (full-width letters, digits and punctuation), case is folded,
    punctuation (Unicode P*) and controls become gaps, gaps become one space. Symbols such as ``+`` and
    ``=`` stay: they carry meaning. A sign, point or comma between digits stays (``3.14``).
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(
        character if _is_content(character) or _inside_number(folded, place) else " "
        for place, character in enumerate(folded)
    )
    return " ".join(kept.split())


def _is_content(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character)[0] not in "PCZ"


def _inside_number(text: str, place: int) -> bool:
    return (
        text[place] in ".,-:/"
        and 0 < place < len(text) - 1
        and text[place - 1].isdecimal()
        and text[place + 1].isdecimal()
    )


@lru_cache(maxsize=1 << 14)
def content_words(text: str) -> tuple[str, ...]:
    """Normalised words as jieba cuts them, without white space."""
    return tuple(word for word in cut(normalise(text)) if not word.isspace())


@lru_cache(maxsize=1 << 14)
def content_units(text: str) -> tuple[str, ...]:
    """Normalised characters, with each run of Latin letters or digits kept whole."""
    return tuple(_UNIT.findall(normalise(text)))
