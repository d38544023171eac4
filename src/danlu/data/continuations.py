"""Pieces of a conversation as token ids: each is tokenised as the continuation of what stands before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Protocol

_INSIDE = "\0inside"
"""Stands for ordinary text before a piece."""

IN_TEXT = "text"
"""What to name as standing before a piece when that is ordinary text."""

_GUARDS = ("\n", "b", "\u3002")
"""Ordinary text put before a piece so that it is tokenised as a continuation; the first that stays by itself."""


class Tokenizer(Protocol):
    """What a template needs of a tokenizer; those of transformers have it."""

    chat_template: Any
    eos_token_id: int | None

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """Names of special tokens (``bos_token``, …) and their text."""

    @property
    def all_special_tokens(self) -> list[str]:
        """Text of the control tokens that decoding leaves out."""

    def get_added_vocab(self) -> dict[str, int]:
        """Text and id of every token that is matched before ordinary tokenisation."""

    def encode(self, text: str, *, add_special_tokens: bool, **options: Any) -> list[int]:
        """Token ids of a text; those that have ``split_special_tokens`` take it here too."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> Any:
        """The text of token ids."""


class Continuations:
    """Tokenises texts after control tokens or other text.

    Args:
        tokenizer: the model's tokenizer.
        tokens: texts that it matches before ordinary tokenisation.
    """

    def __init__(self, tokenizer: Tokenizer, tokens: Iterable[str]) -> None:
        self.tokenizer = tokenizer
        self._tokens = sorted(tokens, key=len, reverse=True)
        self._known_starts: dict[str, list[int]] = {}
        self._stand_ins: dict[str, str] = {}

    def encode(self, texts: Sequence[tuple[str, str, bool]]) -> list[list[int]]:
        """Token ids of texts, each as the continuation of what stands before it.

        Args:
            texts: for each the :meth:`context`, the text, and whether control tokens in it are ordinary text.
        """
        found: dict[tuple[str, str, bool], list[int]] = {}
        waiting = list(dict.fromkeys(texts))
        for guard in _GUARDS:
            starts = [guard if before == _INSIDE else before for before, _, _ in waiting]
            whole = self._encode_batch([(start + text, plain) for start, (_, text, plain) in zip(starts, waiting)])
            for start, key, ids in zip(starts, waiting, whole):
                skip = self._ids_before(start)
                if ids[: len(skip)] == skip:  # else the first letters have grown together with the guard
                    found[key] = ids[len(skip) :]
            waiting = [key for key in waiting if key not in found]
            if not waiting:
                break
        alone = self._encode_batch([(text, plain) for _, text, plain in waiting])
        found.update(zip(waiting, alone))
        return [found[key] for key in texts]

    def _encode_batch(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Token ids of texts, some of them with control tokens as ordinary text."""
        found: dict[tuple[str, bool], list[int]] = {}
        for plain in (False, True):
            chosen = [text for text, is_plain in texts if is_plain == plain]
            if chosen:
                found.update(zip([(text, plain) for text in chosen], self._encode_alike(chosen, plain)))
        return [found[key] for key in texts]

    def _encode_alike(self, texts: list[str], plain: bool) -> list[list[int]]:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None and hasattr(backend, "encode_batch_fast"):
            chosen = self._without_control if plain else backend
            if not plain and getattr(backend, "encode_special_tokens", False):
                backend.encode_special_tokens = False  # transformers leaves it as somebody's last call had it
            return [item.ids for item in chosen.encode_batch_fast(texts, add_special_tokens=False)]
        options = {"split_special_tokens": plain} if hasattr(self.tokenizer, "split_special_tokens") else {}
        return [list(self.tokenizer.encode(text, add_special_tokens=False, **options)) for text in texts]

    @cached_property
    def _without_control(self) -> Any:
        """A copy of the fast tokenizer that reads control tokens as text: the original is shared between threads."""
        backend = self.tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        copy = type(backend).from_str(backend.to_str())
        copy.encode_special_tokens = True
        return copy

    def _ids_before(self, text: str) -> list[int]:
        if text not in self._known_starts:
            self._known_starts[text] = self._encode_alike([text], False)[0] if text else []
        return self._known_starts[text]

    def context(self, before: str, *, plain: bool = False) -> str:
        """What a text is tokenised after: a control token, ordinary text, or nothing where that makes no difference.

        Args:
            before: the text before it; :data:`IN_TEXT` for any ordinary text.
            plain: whether the text is tokenised with control tokens as ordinary text, and so cannot follow one.
        """
        if not before or not self._marks_spaces:
            return ""
        token = next((token for token in self._tokens if before.endswith(token)), None)
        if token is None:
            return _INSIDE
        return self._like(token) if plain else token

    def _like(self, token: str) -> str:
        """What stands for a control token before ordinary text: nothing where a text begins anew after it."""
        if token not in self._stand_ins:
            after, alone = self._encode_alike([f"{token}.", "."], False)  # some are no tokens before a letter
            begins_anew = after[len(self._ids_before(token)) :] == alone
            self._stand_ins[token] = "" if begins_anew else _INSIDE
        return self._stand_ins[token]

    @cached_property
    def _marks_spaces(self) -> bool:
        """Whether the beginning of a text is tokenised unlike its middle.

        Tokenizers of the SentencePiece kind put a space mark before the first word of a text, and some after each
        control token; each piece would get one in the middle of the conversation.
        """
        start, alone, whole = self._ids_before("\n"), *self._encode_alike(["b", "\nb"], False)
        return whole[: len(start)] == start and whole[len(start) :] != alone
