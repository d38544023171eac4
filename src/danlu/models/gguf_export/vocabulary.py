"""The vocabulary of a fast tokenizer as a GGUF file keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from danlu.core.console import note, warn
from danlu.core.errors import ModelError
from danlu.models.gguf_tokens import TokenType, recognise


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer.

    Attributes:
        model: ``gpt2`` for byte-level BPE, ``llama`` for SentencePiece's BPE.
        pre: name of the pre-tokenizer.
        tokens: one for each row of the embeddings.
        types: their :class:`TokenType`.
        merges: of byte-level BPE, in order.
        scores: of SentencePiece's BPE; higher ones are merged first.
        flags: ``add_bos_token`` and its like.
        ids: of bos, eos, eot, eom, unknown and padding, as far as they exist.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] | None = None
    scores: list[float] | None = None
    flags: dict[str, bool] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)

    def add_to(self, writer: Any) -> None:
        """Write it into the metadata of a ``gguf.GGUFWriter``."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        for name, value in self.flags.items():
            writer.add_bool(f"tokenizer.ggml.{name}", value)
        for name, number in self.ids.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)


def vocabulary_of(tokenizer: Any, rows: int, *, stop_ids: Sequence[int] = ()) -> Vocabulary:
    """Read the vocabulary of a tokenizer.

    Args:
        tokenizer: a fast one of transformers.
        rows: of the model's embeddings; rows without a token become unused ones.
        stop_ids: every token that ends an answer.

    Raises:
        ModelError: when the format cannot say what the tokenizer does.
    """
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    model = core["model"]
    if model["type"] != "BPE":
        raise ModelError(
            f"a tokenizer of the kind {model['type']} cannot be written as GGUF by danlu",
            hint="Byte-level BPE and SentencePiece's BPE can.",
        )
    texts = {number: token for token, number in tokenizer.get_vocab().items()}
    if max(texts) >= rows:
        raise ModelError(f"the tokenizer has {max(texts) + 1} tokens and the model only {rows}")
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(rows)]
    types = _types(core, texts, rows)
    flags, ids = _flags(tokenizer), _ids(tokenizer, stop_ids)
    if not model.get("byte_fallback"):
        kind = recognise(core)
        if kind is None or _changes_texts(core):
            raise _unknown_split()
        merges = [item if isinstance(item, str) else " ".join(item) for item in model["merges"]]
        return Vocabulary("gpt2", kind.name, tokens, types, merges=merges, flags=flags, ids=ids)
    flags["add_space_prefix"] = _space_prefix(core, tokenizer)
    scores = _scores(model, tokens, types)
    return Vocabulary("llama", "default", tokens, types, scores=scores, flags=flags, ids=ids)


def _unknown_split() -> ModelError:
    return ModelError(
        "the tokenizer splits texts in a way that has no name in GGUF files, so llama.cpp would read other tokens",
        hint="Export safetensors and use llama.cpp's own converter.",
    )


def _changes_texts(core: Mapping[str, Any]) -> bool:
    """Whether texts are changed before they are split, beyond composing characters (which leaves usual texts alone)."""
    found = core["normalizer"]
    kinds = [item["type"] for item in (found or {}).get("normalizers", [found] if found else [])]
    return kinds not in ([], ["NFC"])


def _types(core: Mapping[str, Any], texts: Mapping[int, str], rows: int) -> list[int]:
    added = {item["id"]: item for item in core["added_tokens"]}
    fallback, unknown = core["model"].get("byte_fallback"), core["model"].get("unk_token")
    types = []
    for number in range(rows):
        text = texts.get(number)
        if text is None:
            kind = TokenType.UNUSED
        elif fallback and text == unknown:
            kind = TokenType.UNKNOWN
        elif number in added:
            kind = TokenType.CONTROL if added[number]["special"] else TokenType.USER_DEFINED
        elif fallback and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            kind = TokenType.BYTE
        else:
            kind = TokenType.NORMAL
        types.append(int(kind))
    return types


def _flags(tokenizer: Any) -> dict[str, bool]:
    """Whether the tokenizer writes BOS before and EOS behind a text; what else it writes cannot be said."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a", add_special_tokens=True)
    place = next((start for start in range(len(whole)) if whole[start : start + len(plain)] == plain), 0)
    before, behind = whole[:place], whole[place + len(plain) :]
    for ids, known in ((before, tokenizer.bos_token_id), (behind, tokenizer.eos_token_id)):
        if ids not in ([], [known]):
            written = "".join(tokenizer.convert_ids_to_tokens(ids))
            warn(f"GGUF cannot say that the tokenizer writes {written} around a text; chat templates write it")
    return {"add_bos_token": before == [tokenizer.bos_token_id], "add_eos_token": behind == [tokenizer.eos_token_id]}


def _ids(tokenizer: Any, stop_ids: Sequence[int]) -> dict[str, int]:
    """Special ids by their names in GGUF; further tokens that end an answer are ``eot`` and ``eom``."""
    further = sorted(set(stop_ids) - {tokenizer.eos_token_id})
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "eot": further[0] if further else None,
        "eom": further[1] if len(further) > 1 else None,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    return {name: number for name, number in ids.items() if number is not None}


def _space_prefix(core: Mapping[str, Any], tokenizer: Any) -> bool:
    """Whether a space is put before a text (SentencePiece's dummy prefix), as llama.cpp would at each piece of it.

    A tokenizer that puts it before the first piece only puts none into a conversation that begins with a special token.
    """
    splitter, normalizer = core["pre_tokenizer"] or {}, core["normalizer"] or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    kinds = [step["type"] for step in steps]
    if splitter.get("type") == "Metaspace" and not steps and not splitter.get("split", True):
        if splitter["prepend_scheme"] == "first":
            if _begins_special(tokenizer):
                note(
                    "Conversations have no space behind their first token, so a text by itself is read without one too."
                )
                return False
            return True
        return bool(splitter["prepend_scheme"] == "always")
    if not splitter and kinds in (["Prepend", "Replace"], ["Replace"]):
        return "Prepend" in kinds
    raise _unknown_split()


def _begins_special(tokenizer: Any) -> bool:
    if not tokenizer.chat_template:
        return False
    text = tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    return bool(text.startswith(tuple(tokenizer.all_special_tokens)))


def _scores(model: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> list[float]:
    """Scores that make SentencePiece merge in the order of the merges: minus the rank of a token's first merge."""
    ranks: dict[str, int] = {}
    for rank, item in enumerate(model["merges"]):
        left, right = item.split(" ") if isinstance(item, str) else item
        ranks.setdefault(left + right, rank)
    lowest = -float(len(model["merges"]))
    scored = (TokenType.NORMAL, TokenType.USER_DEFINED)
    return [
        -float(ranks[token]) if token in ranks else (lowest if kind in scored else 0.0)
        for token, kind in zip(tokens, types)
    ]
