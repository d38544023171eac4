"""A tokenizer of transformers that reads text with the SentencePiece library itself.

Imported only where such a tokenizer is opened: transformers is loaded with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizer

from danlu.core.errors import ModelError


class PiecesTokenizer(PreTrainedTokenizer):
    """Ids of SentencePiece, with control tokens that no text becomes.

    What ``ice_text.model`` and ``tokenizer.model`` have in common; the classes below it say what is written before
    and after text, and how blanks are treated.

    Args:
        vocab_file: the SentencePiece model.
        processor: made of it.
        shift: ids before those of the pieces.
        behind: texts of tokens whose ids follow those of the pieces.
        named: named control tokens, such as ``eos_token``; whatever the folder says of them is not used.
        control: other control tokens.
        kwargs: as every tokenizer of transformers takes them.

    Raises:
        ModelError: when the folder asks for a treatment that no release has.
    """

    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str,
        processor: Any,
        *,
        shift: int = 0,
        behind: Iterable[str] = (),
        named: dict[str, str],
        control: Iterable[str],
        **kwargs: Any,
    ) -> None:
        self.vocab_file = vocab_file
        self._content = Path(vocab_file).read_bytes()
        self._sentencepiece, self._shift, self._behind = processor, shift, tuple(behind)
        for name in ("do_lower_case", "remove_space"):
            if kwargs.pop(name, False):
                raise ModelError(f"a tokenizer with {name} is not supported", where=vocab_file)
        foreign = ("auto_map", "model_specific_special_tokens", *(name for name in kwargs if name.endswith("_token")))
        given = {name: value for name, value in kwargs.items() if name not in foreign}
        wanted = [*control, *(given.pop("extra_special_tokens", None) or ())]
        extra = [text for text in dict.fromkeys(wanted) if text not in named.values()]
        super().__init__(**given, **named, extra_special_tokens=extra)

    @property
    def vocab_size(self) -> int:
        """Ids without added tokens."""
        return self._shift + int(self._sentencepiece.get_piece_size()) + len(self._behind)

    @property
    def model_digest(self) -> str:
        """Hash of everything that decides ids."""
        return hashlib.sha256(self._content + repr((self._shift, self._behind)).encode()).hexdigest()

    @cached_property
    def _pieces(self) -> dict[str, int]:
        return {self._convert_id_to_token(number): number for number in range(self.vocab_size)}

    def get_vocab(self) -> dict[str, int]:
        """Text and id of every piece and added token."""
        return self._pieces | self._added_tokens_encoder

    def _written(self, text: str) -> str:
        """The text as SentencePiece is to read it."""
        return text

    def _read(self, text: str) -> str:
        """The text behind what SentencePiece made of pieces."""
        return text

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(self._sentencepiece.encode(self._written(text), out_type=str))

    def _convert_token_to_id(self, token: str) -> int:
        return self._pieces.get(token, self._shift + int(self._sentencepiece.unk_id()))

    def _convert_id_to_token(self, index: int) -> str:
        number = index - self._shift
        if number < 0:
            return f"<image_{index}>"
        count = int(self._sentencepiece.get_piece_size())
        if number < count:
            return str(self._sentencepiece.id_to_piece(number))
        return self._behind[number - count] if number - count < len(self._behind) else ""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens: control tokens as they are, what is between them as SentencePiece reads it."""
        control = self._added_tokens_encoder
        known = [token for token in tokens if token and not token.startswith("<image_")]
        parts = []
        for is_control, group in groupby(known, key=lambda token: token in control):
            run = list(group)
            parts.append("".join(run) if is_control else self._read(str(self._sentencepiece.decode_pieces(run))))
        return "".join(parts)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Write the SentencePiece model as it was read."""
        name = self.vocab_files_names["vocab_file"]
        path = Path(save_directory) / (f"{filename_prefix}-{name}" if filename_prefix else name)
        path.write_bytes(self._content)
        return (str(path),)
