"""A small tokenizer of SentencePiece's kind, in the layout of Llama 2."""

from __future__ import annotations

from typing import Any

from tiny import CORPUS

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def sentencepiece_tokenizer(*, scheme: str | None = None) -> Any:
    """Byte fallback, a space before each text, and a merge for every way to halve a piece, best pieces first.

    Args:
        scheme: of a Metaspace splitter (always, first, never) in place of a normaliser.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core = Tokenizer(models.BPE())
    core.normalizer = spaces
    core.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    pieces = sorted(core.get_vocab(), key=core.get_vocab().get)
    longer = [piece for piece in pieces if len(piece) > 1]
    order = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *longer]
    order += [piece for piece in pieces if len(piece) == 1]
    known = set(pieces)
    halves = [(piece[:cut], piece[cut:]) for piece in longer for cut in range(1, len(piece))]
    merges = [pair for pair in halves if known.issuperset(pair)]
    core = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(order)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    if scheme is None:
        core.normalizer = spaces
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
