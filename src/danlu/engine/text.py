"""Tokens to text while they arrive: whole characters only, nothing of a stop text; and texts that are scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from danlu.core.errors import UsageError
from danlu.engine.protocol import ScoreRequest

BROKEN = "\ufffd"
"""What a tokenizer shows for bytes that are not yet a whole character."""


class Decoder(Protocol):
    """The part of a tokenizer that turns ids into text."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of token ids."""


def decode(tokenizer: Decoder, ids: Sequence[int]) -> str:
    """The text of an answer, control tokens left out."""
    return tokenizer.decode(list(ids), skip_special_tokens=True)


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the stop text that is complete first, and whether there was one."""
    places = [(place + len(word), place) for word in stop if (place := text.find(word)) >= 0]
    return (text[: min(places)[1]], True) if places else (text, False)


def without_lead(text: str, lead: str) -> str:
    """A text without as much of ``lead`` as it begins with."""
    same = next((place for place, (a, b) in enumerate(zip(text, lead)) if a != b), min(len(text), len(lead)))
    return text[same:]


class TextStream:
    """Collects tokens and gives out the text that is certain so far.

    A character of several tokens (Chinese, emoji) comes out when its last byte has arrived; text that may be
    the beginning of a stop text is held back until it is decided. Only the last few tokens are decoded again.

    Args:
        tokenizer: decodes ids.
        stop: texts that end the answer.
        lead: what the template writes before an answer's text; as much of it as comes first is left out.
    """

    def __init__(self, tokenizer: Decoder, stop: Sequence[str] = (), lead: str = "") -> None:
        self._tokenizer, self._stop, self._lead = tokenizer, tuple(stop), lead
        self._ids: list[int] = []
        self._from = self._shown = 0  # ids[_from:_shown] are context, ids[_shown:] are not yet text
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; the new text that is certain, possibly empty."""
        self._ids.append(token)
        return self._release(self._led(self._fresh()), last=False)

    def finish(self) -> str:
        """The text that was held back, when no more tokens come."""
        return self._release(self._led(self._fresh(last=True)), last=True)

    def _led(self, text: str) -> str:
        """New text without what is left of the lead."""
        if not self._lead or not text:
            return text
        rest = without_lead(text, self._lead)
        self._lead = "" if rest else self._lead[len(text) :]
        return rest

    def _fresh(self, *, last: bool = False) -> str:
        before = decode(self._tokenizer, self._ids[self._from : self._shown])
        now = decode(self._tokenizer, self._ids[self._from :])
        if len(now) <= len(before) or (now.endswith(BROKEN) and not last):
            return ""
        self._from, self._shown = self._shown, len(self._ids)
        return now[len(before) :]

    def _release(self, text: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        text, self.stopped = cut_at_stop(self._held + text, self._stop)
        keep = 0 if last or self.stopped else self._undecided(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _undecided(self, text: str) -> int:
        """Length of the longest end of ``text`` that a stop text begins with."""
        longest = max((len(word) for word in self._stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(word.startswith(text[-size:]) for word in self._stop):
                return size
        return 0


def texts_of(request: ScoreRequest, engine: str, where: str) -> list[str]:
    """The prompt alone, then the prompt with each continuation, for engines that score nothing but plain text.

    Args:
        request: what is to be scored.
        engine: what it is called in the message.
        where: what the message names.

    Raises:
        UsageError: for a prompt that is no text, or a continuation of token ids.
    """
    parts = [text for text in (request.prompt, *request.continuations) if isinstance(text, str)]
    if len(parts) <= len(request.continuations):
        raise UsageError(
            f"{engine} scores continuations of plain text only", where=where, hint="Ask for answers instead."
        )
    return [parts[0], *(parts[0] + continuation for continuation in parts[1:])]
