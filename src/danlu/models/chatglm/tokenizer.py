"""The tokenizers of ChatGLM2 and ChatGLM3 as fast tokenizers that plain transformers loads without remote code.

The originals are SentencePiece models (BPE with byte fallback) wrapped in Python code that adds control tokens
behind the vocabulary. The fast tokenizer does the same with rules of the tokenizers library, and each conversion is
compared with the SentencePiece library before it is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from danlu.core.errors import MissingDependency, ModelError
from danlu.data.named_templates import template_text
from danlu.models.chatglm.hard_texts import hard_texts

MASKS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
CONTROL = {"chatglm2": MASKS, "chatglm3": (*MASKS, "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")}
"""Control tokens of each family, in the order of their ids, which follow the SentencePiece vocabulary."""

PREFIX = ("[gMASK]", "sop")
"""What every sequence begins with."""

ENDS = {"chatglm2": (), "chatglm3": ("<|user|>", "<|observation|>")}
"""Control tokens that end an answer besides the end of sequence; generation_config.json should name them."""

MODEL_FILE = "tokenizer.model"
NORMAL, UNKNOWN, CONTROL_PIECE, BYTE = 1, 2, 3, 6  # types of pieces in sentencepiece_model.proto
BPE = 2
SPACE = "\u2581"


def write_tokenizer(source: Path, target: Path, family: str) -> None:
    """Convert the tokenizer of an original folder.

    Ids and decoded text are those of the SentencePiece library for every text whose control tokens are left alone;
    plain transformers, unlike danlu, turns control tokens inside a text into ids unless it is called with
    ``split_special_tokens=True``.

    Args:
        source: the original folder, with ``tokenizer.model``.
        target: where tokenizer.json, tokenizer_config.json and the chat template are written.
        family: ``chatglm2`` or ``chatglm3``.

    Raises:
        MissingDependency: when sentencepiece or protobuf is not installed.
        ModelError: when the file is missing, damaged, of another kind, or the conversion is not exact.
    """
    if family not in CONTROL:
        raise ModelError(f"there is no fast tokenizer for the family {family!r}", hint=f"Known: {', '.join(CONTROL)}.")
    tokenizer = fast_tokenizer(source, family)
    tokenizer.chat_template = template_text(family)
    tokenizer.save_pretrained(target)


def fast_tokenizer(source: Path, family: str) -> Any:
    """The converted tokenizer, compared with the original and not yet saved; see :func:`write_tokenizer`."""
    from transformers import PreTrainedTokenizerFast

    path = source / MODEL_FILE
    processor, proto = read_sentencepiece(path)
    _check_kind(proto, path)
    core = _core(proto, family)
    controls = [piece.piece for piece in proto.pieces if piece.type == CONTROL_PIECE]
    check_equal(core, processor, path)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=proto.trainer_spec.eos_piece,
        pad_token=proto.trainer_spec.unk_piece,  # the original pads with id 0 too
        unk_token=proto.trainer_spec.unk_piece,
        extra_special_tokens=[*(text for text in controls if text != proto.trainer_spec.eos_piece), *CONTROL[family]],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


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


def _check_kind(proto: Any, path: Path) -> None:
    """Refuse what the rules of the fast tokenizer would not reproduce."""
    trainer, normal, back = proto.trainer_spec, proto.normalizer_spec, proto.denormalizer_spec
    types = {piece.type for piece in proto.pieces}
    wrong = [
        words
        for words, holds in (
            ("it is not of the BPE kind", trainer.model_type != BPE),
            ("it has no byte fallback", not trainer.byte_fallback),
            ("spaces are marked behind words", trainer.treat_whitespace_as_suffix),
            ("text is normalised by a table", bool(normal.precompiled_charsmap)),
            ("decoded text is normalised by a table", bool(back.precompiled_charsmap)),
            ("no space is put before the text", not normal.add_dummy_prefix),
            ("repeated spaces are removed", normal.remove_extra_whitespaces),
            ("spaces are not marked", not normal.escape_whitespaces),
            ("it has pieces of a kind that is not handled", bool(types - {NORMAL, UNKNOWN, CONTROL_PIECE, BYTE})),
            ("the padding id is not the unknown piece", trainer.unk_id != 0),
        )
        if holds
    ]
    if wrong:
        raise ModelError(
            f"this SentencePiece model cannot be converted exactly: {'; '.join(wrong)}",
            where=str(path),
            hint="Check that the file belongs to a released ChatGLM2 or ChatGLM3 model.",
        )


def _core(proto: Any, family: str) -> Any:
    """The tokenizer of the tokenizers library."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    pieces = proto.pieces
    vocabulary = {piece.piece: number for number, piece in enumerate(pieces)}
    unknown = proto.trainer_spec.unk_piece
    core = Tokenizer(models.BPE(vocabulary, merges_of(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    core.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    kept = [piece.piece for piece in pieces if piece.type in (UNKNOWN, CONTROL_PIECE)]
    core.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in kept])
    # "sop" and "eop" are found inside English words ("people"), where plain transformers must leave them alone.
    core.add_special_tokens(
        [AddedToken(text, normalized=False, special=True, single_word=text.isalpha()) for text in CONTROL[family]]
    )
    core.post_processor = processors.TemplateProcessing(
        single=[*PREFIX, "$A"],
        pair=[*PREFIX, "$A", "$B:1", f"{proto.trainer_spec.eos_piece}:1"],
        special_tokens=[(text, core.token_to_id(text)) for text in (*PREFIX, proto.trainer_spec.eos_piece)],
    )
    return core


def merges_of(pieces: Any) -> list[tuple[str, str]]:
    """The merges of a BPE vocabulary in the order in which SentencePiece prefers them.

    SentencePiece joins the neighbours whose joint piece has the best score; every way to cut a piece into two others
    is therefore a merge of that piece's rank. Control, unknown and byte pieces are never joined nor made.
    """
    scores = {piece.piece: piece.score for piece in pieces if piece.type == NORMAL}
    places = {piece.piece: number for number, piece in enumerate(pieces)}
    found = []
    for text, score in scores.items():
        cuts = ((text[:place], text[place:]) for place in range(1, len(text)))
        found += [(-score, places[a], places[b], a, b) for a, b in cuts if a in scores and b in scores]
    return [(first, second) for *_, first, second in sorted(found)]


def check_equal(core: Any, processor: Any, path: Path, texts: Iterable[str] | None = None) -> None:
    """Compare ids and decoded text with SentencePiece.

    Raises:
        ModelError: with the first text that differs.
    """
    core.encode_special_tokens = True
    try:
        for text in hard_texts() if texts is None else texts:
            wanted = processor.encode(text)
            given = core.encode(text, add_special_tokens=False).ids
            if given != wanted:
                raise _differs(path, f"{text!r} would become {given} and is {wanted} in the original")
            told, original = core.decode(wanted, skip_special_tokens=True), processor.decode(wanted)
            if told != original:
                raise _differs(path, f"{wanted} would be read as {told!r} and is {original!r} in the original")
    finally:
        core.encode_special_tokens = False


def _differs(path: Path, what: str) -> ModelError:
    return ModelError(
        f"the converted tokenizer differs from the original: {what}",
        where=str(path),
        hint="Nothing was written; please report this file.",
    )
