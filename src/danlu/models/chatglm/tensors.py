"""Names and shapes of the weights in both layouts, and how the ones are made of the others.

A table, without torch: each tensor of one layout is rows of tensors of the other, one below the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from danlu.models.chatglm.layout import Layout

INVERSE_FREQUENCIES = "transformer.rotary_pos_emb.inv_freq"
"""A buffer of the original layout that its own code computes again; GlmForCausalLM does not store it."""

EMBEDDING = ("transformer.embedding.word_embeddings.weight", "model.embed_tokens.weight")
FINAL_NORM = ("transformer.encoder.final_layernorm.weight", "model.norm.weight")
HEAD = ("transformer.output_layer.weight", "lm_head.weight")
ORIGINAL_LAYER = "transformer.encoder.layers.{}."
NATIVE_LAYER = "model.layers.{}."
FUSED = "self_attention.query_key_value"


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows ``[start, stop)`` of the tensor ``name``."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor and what it is made of: ``pieces`` below each other give ``shape``."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    def build(self, read: Callable[[str], Any]) -> Any:
        """The tensor, from a function that gives the tensors of the other layout by name."""
        if len(self.pieces) == 1:
            return _rows(self.pieces[0], read)
        import torch

        return torch.cat([_rows(piece, read) for piece in self.pieces])


def _rows(piece: Piece, read: Callable[[str], Any]) -> Any:
    tensor = read(piece.name)
    return tensor if tensor.shape[0] == piece.stop - piece.start else tensor[piece.start : piece.stop]


def native_tensors(layout: Layout) -> list[Made]:
    """Every tensor of GlmForCausalLM, made of tensors in the original layout, in the order of the layers."""
    return _table(layout, 1)


def original_tensors(layout: Layout) -> list[Made]:
    """Every tensor in the original layout but ``inv_freq``, made of tensors of GlmForCausalLM."""
    return _table(layout, 0)


def _table(layout: Layout, wanted: int) -> list[Made]:
    """The tensors of the layout that stands ``wanted``-th in the pairs of names."""

    def same(names: tuple[str, str], *shape: int) -> Made:
        return Made(names[wanted], shape, (Piece(names[1 - wanted], 0, shape[0]),))

    made = [same(EMBEDDING, layout.vocabulary, layout.hidden)]
    for layer in range(layout.layers):
        old, native = ORIGINAL_LAYER.format(layer), NATIVE_LAYER.format(layer)

        def weight(place: str, native_place: str, *shape: int, old: str = old, native: str = native) -> Made:
            return same((f"{old}{place}.weight", f"{native}{native_place}.weight"), *shape)

        made.append(weight("input_layernorm", "input_layernorm", layout.hidden))
        for kind in ("weight", "bias") if layout.qkv_bias else ("weight",):
            made += (_original_qkv, _native_qkv)[wanted](layout, layer, kind)
        width = layout.heads * layout.head_size
        made += [
            weight("self_attention.dense", "self_attn.o_proj", layout.hidden, width),
            weight("post_attention_layernorm", "post_attention_layernorm", layout.hidden),
            weight("mlp.dense_h_to_4h", "mlp.gate_up_proj", 2 * layout.inner, layout.hidden),
            weight("mlp.dense_4h_to_h", "mlp.down_proj", layout.hidden, layout.inner),
        ]
    return [*made, same(FINAL_NORM, layout.hidden), same(HEAD, layout.vocabulary, layout.hidden)]


def _native_qkv(layout: Layout, layer: int, kind: str) -> list[Made]:
    fused = f"{ORIGINAL_LAYER.format(layer)}{FUSED}.{kind}"
    made = []
    for part, rows in layout.fused_rows().items():
        pieces = tuple(Piece(fused, start, stop) for start, stop in rows)
        made.append(_stacked(layout, f"{NATIVE_LAYER.format(layer)}self_attn.{part}.{kind}", pieces))
    return made


def _original_qkv(layout: Layout, layer: int, kind: str) -> list[Made]:
    placed: list[tuple[int, Piece]] = []
    for part, rows in layout.fused_rows().items():
        name, offset = f"{NATIVE_LAYER.format(layer)}self_attn.{part}.{kind}", 0
        for start, stop in rows:
            placed.append((start, Piece(name, offset, offset + stop - start)))
            offset += stop - start
    pieces = tuple(piece for _, piece in sorted(placed, key=lambda item: item[0]))
    return [_stacked(layout, f"{ORIGINAL_LAYER.format(layer)}{FUSED}.{kind}", pieces)]


def _stacked(layout: Layout, name: str, pieces: tuple[Piece, ...]) -> Made:
    size = sum(piece.stop - piece.start for piece in pieces)
    return Made(name, (size,) if name.endswith("bias") else (size, layout.hidden), pieces)
