"""Weights as tensors of a GGUF file: names, order of rows, and numbers in few bits; one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from danlu.core.errors import ModelError
from danlu.models.gguf_export.architectures import Architecture
from danlu.models.gguf_export.metadata import rope_factors

GgufType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
TYPES: tuple[str, ...] = get_args(GgufType)
FILE_TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q4_0": "MOSTLY_Q4_0",
}
BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 34 / 32}
"""Of a weight, at most: with 4 bits some tensors keep 8."""

FUSED = {"mlp.experts.gate_up_proj": ("ffn_gate_exps", "ffn_up_exps")}
"""Parameters of transformers whose rows (of each expert) are those of two tensors, one below the other."""

KEPT_LONGER = ("token_embd", "output")
"""With 4 bits these keep 8: they decide every token, and are a small part of a large model."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of the file.

    Attributes:
        name: in the file.
        source: name of the model's parameter.
        kind: ``gguf.GGMLQuantizationType`` of its numbers.
        heads: number of heads whose rows are reordered, None if they stay.
        rows: which of the parameter's rows, for a tensor that is a part of it; None for all.
    """

    name: str
    source: str
    kind: Any
    heads: int | None = None
    rows: slice | None = None

    def part_of(self, value: Any) -> Any:
        """The numbers of a parameter that this tensor holds (a view)."""
        return value if self.rows is None else value[..., self.rows, :]

    def bytes_of(self, value: Any) -> Any:
        """The numbers of a parameter as they stand in the file (a numpy array)."""
        import gguf

        return gguf.quantize(interleaved(value, self.heads) if self.heads else value, self.kind)

    def rounded(self, value: Any) -> Any:
        """The same numbers as whoever reads the file gets them, in the model's own order of rows."""
        import gguf

        return gguf.dequantize(gguf.quantize(value, self.kind), self.kind)


def plan(model: Any, architecture: Architecture, kind: GgufType) -> list[Stored]:
    """Every tensor that will be written, in order; tied ones once.

    Raises:
        ModelError: when a parameter has no place in the format.
    """
    import gguf

    config = model.config
    arch = next(item for item, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.gguf)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    stored: list[Stored] = []
    for source, value in model.named_parameters():
        layer, _, inner = source.removeprefix("model.layers.").partition(".")
        if inner in FUSED:
            half = value.shape[-2] // 2
            for number, part in enumerate(FUSED[inner]):
                name, rows = f"blk.{layer}.{part}.weight", slice(number * half, (number + 1) * half)
                stored.append(Stored(name, source, _kind(name, value, kind), rows=rows))
            continue
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModelError(
                f"the weight {source} has no place in a GGUF file of the kind {architecture.gguf}",
                hint="Export safetensors instead.",
            )
        name = name if source.endswith((".weight", ".bias")) else f"{name}.weight"
        stored.append(Stored(name, source, _kind(name, value, kind), _heads(source, config, architecture)))
    return stored


def _kind(name: str, value: Any, wanted: GgufType) -> Any:
    """Vectors and what chooses experts stay in float32, and rows that are no whole number of blocks in float16."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if value.dim() == 1 or "ffn_gate_inp" in name:
        return GGMLQuantizationType.F32
    longer = wanted == "q4_0" and name.split(".", maxsplit=1)[0] in KEPT_LONGER
    kind = GGMLQuantizationType["Q8_0" if longer else wanted.upper()]
    return GGMLQuantizationType.F16 if value.shape[-1] % GGML_QUANT_SIZES[kind][0] else kind


def _heads(source: str, config: Any, architecture: Architecture) -> int | None:
    part = source.split(".")[-2]
    if part not in architecture.interleaved:
        return None
    return int(config.num_attention_heads if part == "q_proj" else config.num_key_value_heads)


def interleaved(value: Any, heads: int) -> Any:
    """Rows of a query or key projection with the two numbers of each rotary pair side by side.

    transformers keeps the first halves of all pairs of a head before their second halves.

    Args:
        value: (heads * width, …), a numpy array.
        heads: number of heads.
    """
    halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return halves.swapaxes(1, 2).reshape(value.shape)


def write_tensors(writer: Any, model: Any, stored: list[Stored]) -> None:
    """Announce all tensors, then write them one by one; each parameter becomes what a reader of the file gets.

    Args:
        writer: a ``gguf.GGUFWriter`` with its metadata complete.
        model: in float32; its parameters are rounded in place.
        stored: from :func:`plan`.
    """
    import gguf
    import numpy

    parameters = dict(model.named_parameters())
    factors = rope_factors(model.config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", (len(factors),), numpy.dtype("float32"), 4 * len(factors))
    for item in stored:
        part = item.part_of(parameters[item.source])
        shape, count = tuple(part.shape), part.numel()
        block, size = gguf.GGML_QUANT_SIZES[item.kind]
        writer.add_tensor_info(item.name, shape, numpy.dtype("float32"), count // block * size, raw_dtype=item.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(numpy.array(factors, dtype="float32"))
    for _, data in _each(parameters, stored):
        writer.write_tensor_data(data)


def _each(parameters: dict[str, Any], stored: list[Stored]) -> Iterator[tuple[str, Any]]:
    import torch

    for item in stored:
        part = item.part_of(parameters[item.source].data)
        value = part.float().cpu().contiguous().numpy()
        yield item.name, item.bytes_of(value)
        part.copy_(torch.from_numpy(item.rounded(value).reshape(value.shape)))
