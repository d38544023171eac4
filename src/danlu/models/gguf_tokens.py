"""Byte-level vocabularies of GGUF files: what ``tokenizer.ggml.pre`` stands for, and tokenizers made from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
"""Names of transformers and the middle of ``tokenizer.ggml.*_token_id``."""


class TokenType(IntEnum):
    """``tokenizer.ggml.token_type`` of the GGUF format."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How texts are split before byte-level BPE.

    Attributes:
        name: in ``tokenizer.ggml.pre``.
        steps: ``digits``, ``words`` or regular expressions, in order.
        normalizer: a Unicode normal form, or None.
        whole_words: whether a whole piece that is in the vocabulary is taken without merging.
        also: other names in files that stand for the same.
    """

    name: str
    steps: tuple[str, ...]
    normalizer: str | None = None
    whole_words: bool = False
    also: tuple[str, ...] = ()


@cache
def pre_tokenizers() -> dict[str, PreTokenizer]:
    """Every pre-tokenizer that can be written and read, by its names."""
    text = (files("danlu") / "assets" / "gguf" / "pre_tokenizers.yaml").read_text(encoding="utf-8")
    found: dict[str, PreTokenizer] = {}
    for name, entry in yaml.safe_load(text)["pre_tokenizers"].items():
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
        }
        kind = PreTokenizer(name, **fields)
        found |= dict.fromkeys((name, *kind.also), kind)
    return found


def recognise(core: Mapping[str, Any]) -> PreTokenizer | None:
    """The pre-tokenizer of a ``tokenizer.json``, None if there is no name for it.

    Unicode normalisation is no part of the comparison: a GGUF file cannot say it.
    """
    found = core["pre_tokenizer"] or {}
    given = found["pretokenizers"] if found.get("type") == "Sequence" else [found]
    steps = [_step(item) for item in given]
    if None in steps or not steps or given[-1].get("type") != "ByteLevel":
        return None
    steps = [step for step in steps if step]
    whole = bool(core["model"].get("ignore_merges"))
    kinds = {kind.name: kind for kind in pre_tokenizers().values()}
    return next((kind for kind in kinds.values() if list(kind.steps) == steps and kind.whole_words == whole), None)


def _step(item: Mapping[str, Any]) -> str | None:
    """A step in the words of the table; "" for one that does nothing, None for one that the table cannot say."""
    kind = item.get("type")
    if kind == "ByteLevel" and not item.get("add_prefix_space"):
        return "words" if item.get("use_regex", True) else ""
    if kind == "Digits" and item.get("individual_digits"):
        return "digits"
    if kind == "Split" and item.get("behavior") == "Isolated" and not item.get("invert"):
        return str(item["pattern"].get("Regex")) if "Regex" in item["pattern"] else None
    return None


def byte_level_tokenizer(fields: Mapping[str, Any]) -> Any | None:
    """The tokenizer of a GGUF file, exactly as the file spells it; None if it is of another kind.

    transformers leaves out added tokens with characters beyond the byte alphabet and knows fewer names of
    pre-tokenizers.

    Args:
        fields: the metadata of the file, by key.
    """
    kind = pre_tokenizers().get(str(fields.get("tokenizer.ggml.pre")))
    if fields.get("tokenizer.ggml.model") != "gpt2" or kind is None:
        return None
    from tokenizers import Tokenizer

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    core = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(tokens, fields.get("tokenizer.ggml.token_type") or ()),
        "normalizer": {"type": kind.normalizer} if kind.normalizer else None,
        "pre_tokenizer": _pre_tokenizer(kind),
        "post_processor": _post_processor(tokens, fields),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": fields["tokenizer.ggml.merges"],
            "ignore_merges": kind.whole_words,
        },
    }
    return _with_names(Tokenizer.from_str(json.dumps(core)), fields)


def _added(tokens: list[str], types: Any) -> list[dict[str, Any]]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": number, "content": token, **plain, "special": kind == TokenType.CONTROL}
        for number, (token, kind) in enumerate(zip(tokens, types))
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]


def _pre_tokenizer(kind: PreTokenizer) -> dict[str, Any]:
    expressions = [step for step in kind.steps if step not in ("digits", "words")]
    steps: list[dict[str, Any]] = []
    if "digits" in kind.steps:
        steps.append({"type": "Digits", "individual_digits": True})
    steps += [
        {"type": "Split", "pattern": {"Regex": text}, "behavior": "Isolated", "invert": False} for text in expressions
    ]
    words = "words" in kind.steps
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": words})
    return {"type": "Sequence", "pretokenizers": steps}


def _post_processor(tokens: list[str], fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is written before and behind a text, if the file says so."""
    around = {}
    for name in ("bos", "eos"):
        number = fields.get(f"tokenizer.ggml.{name}_token_id")
        if fields.get(f"tokenizer.ggml.add_{name}_token") and number is not None:
            around[name] = (tokens[number], number)
    if not around:
        return None

    def template(*sequences: str) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        for type_id, sequence in enumerate(sequences):
            parts += [{"SpecialToken": {"id": around["bos"][0], "type_id": type_id}}] if "bos" in around else []
            parts.append({"Sequence": {"id": sequence, "type_id": type_id}})
            parts += [{"SpecialToken": {"id": around["eos"][0], "type_id": type_id}}] if "eos" in around else []
        return parts

    return {
        "type": "TemplateProcessing",
        "single": template("A"),
        "pair": template("A", "B"),
        "special_tokens": {text: {"id": text, "ids": [number], "tokens": [text]} for text, number in around.values()},
    }


def sentencepiece_tokenizer(fields: Mapping[str, Any]) -> Any | None:
    """The tokenizer of a GGUF file with SentencePiece's BPE as Llama and ChatGLM use it; None if it is another's.

    A space is put before each piece of text between special tokens, as llama.cpp does; the tokenizer that transformers
    makes puts it before the first piece only, whatever the file says.

    Args:
        fields: the metadata of the file, by key.
    """
    if fields.get("tokenizer.ggml.model") != "llama" or fields["general.architecture"] not in ("llama", "chatglm"):
        return None
    from tokenizers import Tokenizer

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    types: list[int] = fields.get("tokenizer.ggml.token_type") or [TokenType.NORMAL] * len(tokens)
    prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    unknown = fields.get("tokenizer.ggml.unknown_token_id")
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    decoders += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    core = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(tokens, types),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*([{"type": "Prepend", "prepend": "\u2581"}] if prefix else []), replace],
        },
        "pre_tokenizer": None,
        "post_processor": _post_processor(tokens, {"tokenizer.ggml.add_bos_token": True, **fields}),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": _merges(tokens, types, fields["tokenizer.ggml.scores"]),
            "unk_token": None if unknown is None else tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }
    return _with_names(Tokenizer.from_str(json.dumps(core)), fields)


def _merges(tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[list[str]]:
    """Every way to halve a token into two others, the highest scores first, as SentencePiece merges."""
    pieces = {
        token: (score, number)
        for number, (token, kind, score) in enumerate(zip(tokens, types, scores))
        if kind in (TokenType.NORMAL, TokenType.USER_DEFINED)
    }
    halves = [
        (-score, number, cut, token)
        for token, (score, number) in pieces.items()
        for cut in range(1, len(token))
        if token[:cut] in pieces and token[cut:] in pieces
    ]
    return [[token[:cut], token[cut:]] for _, _, cut, token in sorted(halves)]


def _with_names(core: Any, fields: Mapping[str, Any]) -> Any:
    """A tokenizer of transformers with the special tokens and the chat template of the file."""
    from transformers import PreTrainedTokenizerFast

    tokens = fields["tokenizer.ggml.tokens"]
    special = {name: fields.get(f"tokenizer.ggml.{key}_token_id") for name, key in SPECIAL.items()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        clean_up_tokenization_spaces=False,
        **{name: tokens[number] for name, number in special.items() if number is not None},
    )
    tokenizer.chat_template = fields.get("tokenizer.chat_template")
    return tokenizer
