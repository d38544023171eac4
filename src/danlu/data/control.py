"""Control tokens and the text that people write: the one never becomes the other.

Control text in a message is hidden before the template renders it. Afterwards the rendered text is cut at the control
tokens that the template itself wrote, and what people wrote between them is tokenised as ordinary text: in one run, as
a tokenizer reads it that looks for no control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from danlu.data.continuations import Tokenizer

_OPEN, _CLOSE = "\u29fc", "\u29fd"
"""Rare brackets around the index of hidden text; printable, so that no filter of a template escapes them."""

_HIDDEN = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of text that is tokenised by itself.

    Attributes:
        text: what is tokenised.
        plain: whether control tokens in it are ordinary text.
        number: the token id where the text is a control token of the template's own.
    """

    text: str
    plain: bool = False
    number: int | None = None


class ControlText:
    """Hides control text that people write, and finds that of the template.

    Args:
        tokenizer: the model's tokenizer.
        added: text and id of every token that it matches before ordinary tokenisation.

    Attributes:
        special_ids: ids that ordinary text must never become.
    """

    def __init__(self, tokenizer: Tokenizer, added: Mapping[str, int]) -> None:
        # Some vocabularies add runs of spaces and line ends: those are text, not control. The two marks that hide
        # control text are hidden themselves, so that whoever writes them gets them back.
        named = sorted((text for text in added if not _is_blank(text)), key=len, reverse=True)
        self._texts = [*named, _OPEN, _CLOSE]
        self._places = {text: str(place) for place, text in enumerate(self._texts)}
        self._added = added
        backend = getattr(tokenizer, "backend_tokenizer", None)
        special = set(tokenizer.all_special_tokens)
        self._any_pattern = _any_of(self._texts)
        self._special_pattern = _any_of([text for text in self._texts if text in special or text in (_OPEN, _CLOSE)])
        details = _details(tokenizer, backend)
        # A fast tokenizer that is told to leave control tokens alone still finds added words; a slow one finds nothing.
        passed = named if backend is None else [text for text in named if _is_special(details, added[text])]
        self._passed = frozenset((*passed, _OPEN, _CLOSE))
        self._written = _any_of(passed, group=True)
        self.special_ids = frozenset(added[text] for text in passed)
        can_pass = backend is not None or hasattr(tokenizer, "split_special_tokens")
        self._in_runs = can_pass and not any(_strips(details, added[text]) for text in passed)

    def hide(self, text: str, *, answer: bool = False) -> str:
        """The text with control text hidden; an answer keeps added words that it may write, such as ``<think>``."""
        pattern = self._special_pattern if answer else self._any_pattern
        return pattern.sub(lambda match: f"{_OPEN}{self._places[match.group()]}{_CLOSE}", text)

    def reveal(self, text: str) -> str:
        """The text as it was before it was hidden."""
        return _HIDDEN.sub(lambda match: self._texts[int(match.group(1))], text)

    def runs(self, text: str) -> list[Run]:
        """Cut a rendered text into what is tokenised by itself; a text without hidden parts stays whole."""
        if _OPEN not in text:
            return [Run(text)] if text else []
        if not self._in_runs:  # control tokens that take spaces around them away, or a tokenizer that passes none over
            return self._halved(text)
        runs: list[Run] = []
        for place, part in enumerate(self._written.split(text)):
            if place % 2:
                runs.append(Run(part, number=self._added[part]))
            elif part:
                runs += self._ordinary(part)
        return runs

    def halves(self, text: str) -> list[Run]:
        """Revealed text again, with each control text in harmless halves: where passing over it is not enough."""
        return self._halved(self.hide(text))

    def _ordinary(self, text: str) -> list[Run]:
        """Text between control tokens: whole, but for hidden words that passing control tokens over would not hide."""
        runs: list[Run] = []
        whole, plain = "", False
        for place, part in enumerate(_HIDDEN.split(text)):
            word = self._texts[int(part)] if place % 2 else part
            if place % 2 and word not in self._passed:
                runs += [Run(whole, plain), *_in_halves(word)]
                whole, plain = "", False
                continue
            whole += word
            plain = plain or bool(place % 2)
        return [run for run in (*runs, Run(whole, plain)) if run.text]

    def _halved(self, text: str) -> list[Run]:
        runs: list[Run] = []
        for place, part in enumerate(_HIDDEN.split(text)):
            runs += _in_halves(self._texts[int(part)]) if place % 2 else [Run(part)]
        return [run for run in runs if run.text]


def _in_halves(word: str) -> list[Run]:
    return [Run(word[0]), Run(word[1:])]


def _details(tokenizer: Any, backend: Any) -> Mapping[int, Any]:
    """How each added token is matched, by id; empty where the tokenizer does not tell."""
    if backend is not None and hasattr(backend, "get_added_tokens_decoder"):
        return dict(backend.get_added_tokens_decoder())
    return dict(getattr(tokenizer, "added_tokens_decoder", {}))


def _is_special(details: Mapping[int, Any], number: int) -> bool:
    return bool(getattr(details.get(number), "special", False))


def _strips(details: Mapping[int, Any], number: int) -> bool:
    detail = details.get(number)
    return bool(getattr(detail, "lstrip", False) or getattr(detail, "rstrip", False))


def _is_blank(text: str) -> bool:
    """Whether a text is white space, also as SentencePiece writes it."""
    return not text.replace("\u2581", "").strip()


def _any_of(texts: Sequence[str], *, group: bool = False) -> re.Pattern[str]:
    pattern = "|".join(map(re.escape, texts)) or r"(?!)"
    return re.compile(f"({pattern})" if group else pattern)
