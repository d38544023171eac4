"""SentencePiece models as files: the processor, and the protocol buffer behind it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from danlu.core.errors import MissingDependency, ModelError

NORMAL, UNKNOWN, CONTROL_PIECE, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
"""Types of pieces in sentencepiece_model.proto."""


def read_sentencepiece(path: Path) -> tuple[Any, Any]:
    """A SentencePiece model: the processor, and the protocol buffer that it was read from.

    Raises:
        MissingDependency: when sentencepiece or protobuf is not installed.
        ModelError: when the file is missing or no such model.
    """
    try:
        from sentencepiece import SentencePieceProcessor

        messages: Any = import_module("sentencepiece.sentencepiece_model_pb2")  # made by protobuf when it is imported
    except ImportError as error:
        package = "protobuf" if "google" in str(error) else "sentencepiece"
        raise MissingDependency(package, "to read the tokenizer of a ChatGLM model", extra="tune") from error
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"the tokenizer cannot be read ({error.strerror})", where=str(path)) from error
    if content.startswith(b"version https://git-lfs"):
        raise ModelError(
            "this is a pointer of Git LFS, not the tokenizer itself",
            where=str(path),
            hint="Fetch the real file, for instance with `git lfs pull`.",
        )
    try:
        proto = messages.ModelProto.FromString(content)
        return SentencePieceProcessor(model_proto=content), proto
    except Exception as error:  # protobuf and sentencepiece share no base class
        raise ModelError(f"this is not a SentencePiece model ({error})", where=str(path)) from error
