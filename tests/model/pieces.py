"""Small SentencePiece models of the kinds that the ChatGLM families use, with the files of their folders."""

from __future__ import annotations

import io
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

LINE = (
    "the furnace takes raw text and gives back a small model that answers what is a run folder people sophisticated "
    "philosophy round user system assistant tool weather city date return def print import for in range True None"
)
CHINESE = "丹炉把原始文本炼成会回答的小模型。什么是运行？数据集对话列表，模板词元训练写下一切问：答：天气"

CONFIGS: dict[str, dict[str, Any]] = {
    "chatglm2": {
        "name_or_path": "THUDM/chatglm2-6b",
        "remove_space": False,
        "do_lower_case": False,
        "tokenizer_class": "ChatGLMTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    },
    "chatglm1": {
        "bos_token": "<sop>",
        "eos_token": "<eop>",
        "end_token": "</s>",
        "gmask_token": "[gMASK]",
        "mask_token": "[MASK]",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "remove_space": False,
        "do_lower_case": False,
        "num_image_tokens": 0,
        "tokenizer_class": "ChatGLMTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    },
}
CONFIGS["chatglm3"] = CONFIGS["chatglm2"] | {"name_or_path": "THUDM/chatglm3-6b"}


def corpus(seed: int = 0) -> list[str]:
    """A few hundred lines of English, Chinese, numbers and code."""
    chooser = random.Random(seed)
    lines = []
    for _ in range(400):
        words = " ".join(chooser.choices(LINE.split(), k=8))
        chinese = "".join(chooser.choices(CHINESE, k=12))
        lines += [words, chinese, f"[Round {chooser.randint(1, 99)}] {words[:20]}: {chinese[:4]}", f"  x = {words[:9]}"]
    return lines


def make_tokenizer_model(folder: Path, kind: str = "chatglm2") -> None:
    """Write the tokenizer files of an original folder: ``kind`` is chatglm2, chatglm3 or chatglm1.

    The vocabularies fit the tiny checkpoints: 498 pieces and the control tokens behind them (chatglm2, chatglm3: of
    512), and 500 pieces (chatglm1: [MASK] is 500).
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = "ice_text.model" if kind == "chatglm1" else "tokenizer.model"
    (folder / name).write_bytes(_trained("chatglm1" if kind == "chatglm1" else "chatglm2"))
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIGS[kind], indent=2), encoding="utf-8")


@cache
def _trained(kind: str) -> bytes:
    from sentencepiece import SentencePieceTrainer

    options: dict[str, Any] = {
        "chatglm2": {
            "model_type": "bpe",
            "vocab_size": 498,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "allow_whitespace_only_pieces": True,
        },
        "chatglm1": {"model_type": "unigram", "vocab_size": 500, "pad_id": 3, "user_defined_symbols": ["<n>"]},
    }[kind]
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=written,
        num_threads=1,
        minloglevel=2,
        character_coverage=0.99,
        byte_fallback=True,
        **options,
    )
    return _with_control(written.getvalue()) if kind == "chatglm1" else written.getvalue()


def _with_control(content: bytes) -> bytes:
    """Control tokens from 500 on, a tab and as many blanks as the tiny checkpoint has room for."""
    from importlib import import_module

    messages: Any = import_module("sentencepiece.sentencepiece_model_pb2")
    proto = messages.ModelProto.FromString(content)
    assert len(proto.pieces) == 500
    control = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
    blanks = ("<|tab|>", *(f"<|blank_{size}|>" for size in range(2, 21)))
    for text in (*control, *blanks):
        proto.pieces.add(piece=text, score=0.0, type=3 if text in control else 4)
    return bytes(proto.SerializeToString())
