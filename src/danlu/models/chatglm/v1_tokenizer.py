"""The tokenizer of ChatGLM-6B (the first): a SentencePiece unigram model with its own treatment of blanks.

Imported only where such a tokenizer is opened: transformers is loaded with it.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from danlu.core.errors import ModelError
from danlu.data.named_templates import template_text
from danlu.models.chatglm.pieces import BYTE, CONTROL_PIECE, USER_DEFINED, read_sentencepiece
from danlu.models.chatglm.pieces_tokenizer import PiecesTokenizer
from danlu.models.sources import read_folder_json

MODEL_FILE = "ice_text.model"
SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
"""Control tokens, in the order of their ids."""

OUTER = ("<s>", "</s>")
NAMED = {
    "bos_token": "<sop>",
    "eos_token": "<eop>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "[MASK]",
}
LINE_END, TAB = "<n>", "<|tab|>"
MOST_BLANKS = 80
IMAGE_TOKENS = 20_000
"""Ids before those of text in the first release; the later one dropped them."""

_BLANKS = re.compile(r" {2,}")


class ChatGLMTokenizer(PiecesTokenizer):
    """ChatGLM-6B's tokenizer, with the name that its folders give it.

    Line ends, tabs and runs of blanks become pieces of their own before SentencePiece reads the text; ids of text are
    shifted by the number of image tokens. A sequence by itself ends with ``[gMASK] <sop>``, an answer with ``<eop>``.

    Args:
        vocab_file: ``ice_text.model``, of the first release (control tokens are added behind its pieces) or the
            later one (which holds them).
        num_image_tokens: ids before those of text; by default 0 where the file holds the control tokens, else 20000.
        kwargs: as every tokenizer of transformers takes them; names of control tokens are fixed here.

    Raises:
        MissingDependency: when sentencepiece or protobuf is not installed.
        ModelError: when the file is not such a model.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": MODEL_FILE}

    def __init__(self, vocab_file: str, num_image_tokens: int | None = None, **kwargs: Any) -> None:
        processor, later = _processor(Path(vocab_file))
        if num_image_tokens is None:
            num_image_tokens = 0 if later else IMAGE_TOKENS
        kwargs["num_image_tokens"] = self.num_image_tokens = num_image_tokens  # saved with the rest
        super().__init__(
            vocab_file, processor, shift=num_image_tokens, named=NAMED, control=(*SPECIAL, *OUTER), **kwargs
        )

    @cached_property
    def _longest_blank(self) -> int:
        return max((size for size in range(2, MOST_BLANKS + 1) if _blank(size) in self._pieces), default=1)

    def _written(self, text: str) -> str:
        return _BLANKS.sub(self._blanks, text.replace("\n", LINE_END).replace("\t", TAB))

    def _blanks(self, match: re.Match[str]) -> str:
        whole, rest = divmod(len(match.group()), self._longest_blank)
        return _blank(self._longest_blank) * whole + (_blank(rest) if rest > 1 else " " * rest)

    def _read(self, text: str) -> str:
        text = text.replace(LINE_END, "\n").replace(TAB, "\t")
        return re.sub(r"<\|blank_(\d+)\|>", lambda match: " " * int(match.group(1)), text)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """``text [gMASK] <sop>``, and for a pair ``answer <eop>`` behind it."""
        mask, start, end = self.convert_tokens_to_ids(["[gMASK]", "<sop>", "<eop>"])
        prompt = [*token_ids_0, mask, start]
        return prompt if token_ids_1 is None else [*prompt, *token_ids_1, end]


def open_first_tokenizer(folder: Path) -> ChatGLMTokenizer:
    """The tokenizer of a ChatGLM-6B folder or of a run that saved one, with its chat template.

    Raises:
        ModelError: when its ids are not those that config.json names.
    """
    tokenizer = ChatGLMTokenizer.from_pretrained(folder, **_image_tokens(folder))
    if not tokenizer.chat_template:
        tokenizer.chat_template = template_text("chatglm1")
    return tokenizer


def _image_tokens(folder: Path) -> dict[str, int]:
    """How far config.json says that the ids are shifted; nothing where it does not say."""
    path = folder / "config.json"
    wanted = read_folder_json(path).get("gmask_token_id") if path.is_file() else None
    if wanted is None:
        return {}
    processor, _ = _processor(folder / MODEL_FILE)
    shift = int(wanted) - int(processor.piece_to_id("[gMASK]"))
    if shift not in (0, IMAGE_TOKENS):
        raise ModelError(
            f"config.json says that [gMASK] is token {wanted}, and the tokenizer that it is {wanted - shift}",
            where=str(folder),
            hint=f"Copy the {MODEL_FILE} that belongs to this model into the folder.",
        )
    return {"num_image_tokens": shift}


def _processor(path: Path) -> tuple[Any, bool]:
    """The SentencePiece processor with control tokens that no text becomes, and whether the file held them."""
    from sentencepiece import SentencePieceProcessor

    _, proto = read_sentencepiece(path)
    pieces = {piece.piece: piece for piece in proto.pieces}
    later = SPECIAL[1] in pieces
    if not later:
        added = [(text, CONTROL_PIECE) for text in SPECIAL]
        added += [(text, USER_DEFINED) for text in (TAB, *map(_blank, range(2, MOST_BLANKS + 1)))]
        added += [(f"<0x{number:02X}>", BYTE) for number in range(256)]
        for text, kind in added:
            if text not in pieces:
                proto.pieces.add(piece=text, score=0.0, type=kind)
        proto.trainer_spec.byte_fallback = True
    for text in SPECIAL:
        if text in pieces:
            pieces[text].type = CONTROL_PIECE  # were it user-defined, a text that mentions it would become it
    try:
        return SentencePieceProcessor(model_proto=proto.SerializeToString()), later
    except RuntimeError as error:
        raise ModelError(f"the tokenizer cannot be read ({error})", where=str(path)) from error


def _blank(size: int) -> str:
    return f"<|blank_{size}|>"
