"""The tokenizers of ChatGLM2 and ChatGLM3 as fast tokenizers that plain transformers loads without remote code.

The originals are SentencePiece models (BPE with byte fallback) wrapped in Python code that adds control tokens
behind the vocabulary. The fast tokenizer does the same with rules of the tokenizers library, and each conversion is
compared with the SentencePiece library before it is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from danlu.core.console import warn
from danlu.core.errors import ModelError
from danlu.data.named_templates import template_text
from danlu.models.chatglm.hard_texts import hard_texts
from danlu.models.chatglm.pieces import BYTE, CONTROL_PIECE, NORMAL, UNKNOWN, read_sentencepiece
from danlu.models.sources import read_folder_json

MASKS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
CONTROL = {"chatglm2": MASKS, "chatglm3": (*MASKS, "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")}
"""Control tokens of each family, in the order of their ids, which follow the SentencePiece vocabulary."""

PREFIX = ("[gMASK]", "sop")
"""What every sequence begins with."""


def control_texts(pieces: Iterable[Any], family: str) -> dict[str, str]:
    """What each control token of a family is called in a converted tokenizer.

    Where ``sop``, say, is an ordinary piece of the vocabulary too, a tokenizer of transformers cannot have both: the
    control token is then called ``<sop>``.
    """
    taken = {piece.piece for piece in pieces}
    return {text: f"<{text}>" if text in taken else text for text in CONTROL[family]}


ENDS = {"chatglm2": (), "chatglm3": ("<|user|>", "<|observation|>")}
"""Control tokens that end an answer besides the end of sequence; generation_config.json should name them."""

MODEL_FILE = "tokenizer.model"
SLOW_CLASS = "ChatGLM2Tokenizer"
"""The class in tokenizer_config.json of a tokenizer that could not be made a fast one."""

BPE = 2
SPACE = "\u2581"


class InexactTokenizerError(ModelError):
    """A fast tokenizer would read some text otherwise than the original."""


def write_tokenizer(source: Path, target: Path, family: str) -> None:
    """Convert the tokenizer of an original folder.

    Ids and decoded text are those of the SentencePiece library for every text whose control tokens are left alone;
    plain transformers, unlike danlu, turns control tokens inside a text into ids unless it is called with
    ``split_special_tokens=True``. Where no fast tokenizer is exact, one is written that danlu reads with SentencePiece.

    Args:
        source: the original folder, with ``tokenizer.model``.
        target: where the tokenizer, its settings and the chat template are written.
        family: ``chatglm2`` or ``chatglm3``.

    Raises:
        MissingDependency: when sentencepiece or protobuf is not installed.
        ModelError: when the file is missing or damaged.
    """
    if family not in CONTROL:
        raise ModelError(f"there is no tokenizer for the family {family!r}", hint=f"Known: {', '.join(CONTROL)}.")
    open_tokenizer(source, family).save_pretrained(target)


def check_vocabulary(folder: Path, family: str, rows: int) -> None:
    """Refuse a ``tokenizer.model`` with ids for which the model has no embedding.

    Args:
        folder: an original folder.
        family: ``chatglm2`` or ``chatglm3``.
        rows: of the model's embedding table.

    Raises:
        ModelError: with both numbers.
    """
    processor, _ = read_sentencepiece(folder / MODEL_FILE)
    size = processor.vocab_size() + len(CONTROL[family])
    if size > rows:
        raise ModelError(
            f"this tokenizer has {size} tokens, and the model has room for {rows}",
            where=str(folder / MODEL_FILE),
            hint=f"Copy the {MODEL_FILE} that belongs to this model into the folder.",
        )


def open_tokenizer(folder: Path, family: str) -> Any:
    """The tokenizer of an original folder with its chat template: a fast one if that is exact."""
    try:
        tokenizer = fast_tokenizer(folder, family)
    except InexactTokenizerError as error:
        warn(f"{error.what}: it is read with SentencePiece itself, which is slower and which other programs do not do")
        tokenizer = slow_tokenizer(folder, family)
    _, proto = read_sentencepiece(folder / MODEL_FILE)
    start = "".join(control_texts(proto.pieces, family)[text] for text in PREFIX)
    tokenizer.chat_template = template_text(family).replace("".join(PREFIX), start)
    tokenizer.name_or_path = str(folder)
    return tokenizer


def slow_tokenizer(folder: Path, family: str) -> Any:
    """The tokenizer of a folder with ``tokenizer.model``, read with SentencePiece."""
    from danlu.models.chatglm.later_tokenizer import ChatGLM2Tokenizer

    return ChatGLM2Tokenizer.from_pretrained(folder, chatglm_family=family)


def original_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder that holds a ChatGLM one as it was released; None for any other folder.

    Raises:
        MissingDependency: when sentencepiece or protobuf is not installed.
        ModelError: when it cannot be read, or the files do not tell whether it is ChatGLM2's or ChatGLM3's.
    """
    if (folder / "ice_text.model").is_file():
        from danlu.models.chatglm.v1_tokenizer import open_first_tokenizer

        return open_first_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    if (folder / "tokenizer.json").is_file() or not (folder / MODEL_FILE).is_file() or not path.is_file():
        return None
    settings = read_folder_json(path)
    if settings.get("tokenizer_class") == SLOW_CLASS:
        return slow_tokenizer(folder, settings["chatglm_family"])
    is_original = settings.get("tokenizer_class") == "ChatGLMTokenizer"
    return open_tokenizer(folder, tokenizer_family(folder)) if is_original else None


def end_ids(folder: Path, family: str) -> list[int]:
    """Ids of the control tokens that end an answer besides the end of sequence, for an original folder."""
    processor, _ = read_sentencepiece(folder / MODEL_FILE)
    return [processor.vocab_size() + CONTROL[family].index(text) for text in ENDS[family]]


def tokenizer_family(folder: Path) -> str:
    """Whose tokenizer an original folder holds: the role tokens in its files tell, or the names in them.

    Raises:
        ModelError: when neither does.
    """
    files = [folder / name for name in ("tokenizer_config.json", "tokenization_chatglm.py", "config.json")]
    texts = [file.read_text(encoding="utf-8", errors="replace").lower() for file in files if file.is_file()]
    if any("<|assistant|>" in text or "chatglm3" in text for text in texts):
        return "chatglm3"
    if any("chatglm2" in text for text in texts) or files[1].is_file():
        return "chatglm2"
    raise ModelError(
        "the tokenizer may be that of ChatGLM2 or of ChatGLM3, and no file tells",
        where=str(folder),
        hint="Copy tokenization_chatglm.py of the original folder beside it; it is read, never run.",
    )


def fast_tokenizer(source: Path, family: str) -> Any:
    """The fast tokenizer of an original folder, compared with it, without a chat template.

    Raises:
        InexactTokenizerError: when some text would be read otherwise.
    """
    from transformers import PreTrainedTokenizerFast

    path = source / MODEL_FILE
    processor, proto = read_sentencepiece(path)
    _check_kind(proto, path)
    core = _core(proto, family)
    own = [piece.piece for piece in proto.pieces if piece.type == CONTROL_PIECE]
    added = list(control_texts(proto.pieces, family).values())
    check_equal(core, processor, path, added)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=proto.trainer_spec.eos_piece,
        pad_token=proto.trainer_spec.unk_piece,  # the original pads with id 0 too
        unk_token=proto.trainer_spec.unk_piece,
        extra_special_tokens=[*(text for text in own if text != proto.trainer_spec.eos_piece), *added],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


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
        raise InexactTokenizerError(
            f"the tokenizer has no exact fast counterpart ({'; '.join(wrong)})",
            where=str(path),
            hint="Check that the file belongs to a released ChatGLM2 or ChatGLM3 model.",
        )


def _core(proto: Any, family: str) -> Any:
    """The tokenizer of the tokenizers library."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    pieces = proto.pieces
    vocabulary = {piece.piece: number for number, piece in enumerate(pieces)}
    unknown = proto.trainer_spec.unk_piece
    names = control_texts(pieces, family)
    core = Tokenizer(models.BPE(vocabulary, merges_of(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    core.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    kept = [piece.piece for piece in pieces if piece.type in (UNKNOWN, CONTROL_PIECE)]
    core.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in kept])
    # "sop" and "eop" are found inside English words ("people"), where plain transformers must leave them alone.
    core.add_special_tokens(
        [AddedToken(text, normalized=False, special=True, single_word=text.isalpha()) for text in names.values()]
    )
    start, end = [names[text] for text in PREFIX], proto.trainer_spec.eos_piece
    core.post_processor = processors.TemplateProcessing(
        single=[*start, "$A"],
        pair=[*start, "$A", "$B:1", f"{end}:1"],
        special_tokens=[(text, core.token_to_id(text)) for text in (*start, end)],
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


def check_equal(core: Any, processor: Any, path: Path, control: Sequence[str]) -> None:
    """Compare ids and decoded text with SentencePiece, and the ids of control tokens with their places behind it.

    Raises:
        InexactTokenizerError: with the first text that differs.
    """
    for number, text in enumerate(control, processor.vocab_size()):
        if core.token_to_id(text) != number:
            raise _differs(path, f"the control token {text} would be {core.token_to_id(text)} and is {number}")
    core.encode_special_tokens = True
    try:
        for text in hard_texts():
            wanted = processor.encode(text)
            given = core.encode(text, add_special_tokens=False).ids
            if given != wanted:
                raise _differs(path, f"{text!r} would become {given} and is {wanted} in the original")
            told, original = core.decode(wanted, skip_special_tokens=True), processor.decode(wanted)
            if told != original:
                raise _differs(path, f"{wanted} would be read as {told!r} and is {original!r} in the original")
    finally:
        core.encode_special_tokens = False


def _differs(path: Path, what: str) -> InexactTokenizerError:
    return InexactTokenizerError(f"the fast tokenizer would differ from the original ({what})", where=str(path))
