"""ChatGLM2's and ChatGLM3's tokenizer where it cannot be made a fast one: SentencePiece itself reads the text.

Imported only where such a tokenizer is opened: transformers is loaded with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from danlu.models.chatglm.pieces import CONTROL_PIECE, read_sentencepiece
from danlu.models.chatglm.pieces_tokenizer import PiecesTokenizer
from danlu.models.chatglm.tokenizer import MODEL_FILE, PREFIX, SLOW_CLASS, control_texts


class ChatGLM2Tokenizer(PiecesTokenizer):
    """The ids of the original for whatever its SentencePiece model does to text; danlu opens it, other programs do not.

    Args:
        vocab_file: ``tokenizer.model``.
        chatglm_family: ``chatglm2`` or ``chatglm3``: which control tokens follow the pieces.
        kwargs: as every tokenizer of transformers takes them; names of control tokens are fixed here.

    Raises:
        MissingDependency: when sentencepiece or protobuf is not installed.
        ModelError: when the file is not such a model.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": MODEL_FILE}

    def __init__(self, vocab_file: str, chatglm_family: str, **kwargs: Any) -> None:
        processor, proto = read_sentencepiece(Path(vocab_file))
        unknown, end = proto.trainer_spec.unk_piece, proto.trainer_spec.eos_piece
        names = control_texts(proto.pieces, chatglm_family)
        self._prefix = [names[text] for text in PREFIX]
        kwargs["chatglm_family"] = chatglm_family  # saved with the rest
        super().__init__(
            vocab_file,
            processor,
            behind=names.values(),
            named={"eos_token": end, "pad_token": unknown, "unk_token": unknown},
            control=(*(piece.piece for piece in proto.pieces if piece.type == CONTROL_PIECE), *names.values()),
            **kwargs,
        )

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """``[gMASK] sop text``, and for a pair ``answer </s>`` behind it."""
        start = [*self.convert_tokens_to_ids(self._prefix), *token_ids_0]
        return start if token_ids_1 is None else [*start, *token_ids_1, self.eos_token_id]


assert ChatGLM2Tokenizer.__name__ == SLOW_CLASS  # what tokenizer_config.json of a saved one says
