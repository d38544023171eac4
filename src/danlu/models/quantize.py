"""Linear layers in 8 or 4 bits, by bitsandbytes (Dettmers et al. 2022, arXiv:2208.07339; 2023, arXiv:2305.14314)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from danlu.core.errors import MissingDependency

PACKAGE = "bitsandbytes"


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the linear layers are kept.

    Attributes:
        bits: 8 (LLM.int8) or 4.
        code: of 4 bit weights.
        double: whether the scales of 4 bit weights are quantised as well.
    """

    bits: Literal[4, 8]
    code: Literal["nf4", "fp4"] = "nf4"
    double: bool = True

    @property
    def bytes_each(self) -> float:
        """Bytes of one weight with its share of the scales (one float32 for 64 weights, or 8 bits and a little)."""
        if self.bits == 8:
            return 1.0
        return 0.5 + (0.127 if self.double else 0.5) / 8


def check_package() -> None:
    """Look for bitsandbytes.

    Raises:
        MissingDependency: when it is not there.
    """
    if find_spec(PACKAGE) is None:
        raise MissingDependency(PACKAGE, "for quantization_bit", "quant")


def quantized(wanted: Quantization, dtype: Any, device: Any) -> dict[str, Any]:
    """What ``from_pretrained`` of transformers is told.

    Args:
        wanted: how the linear layers are kept.
        dtype: precision of everything else and of the arithmetic; ``auto`` for the stored one.
        device: where the model is put.

    Raises:
        MissingDependency: when bitsandbytes is not there.
    """
    check_package()
    import torch
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=wanted.bits == 4,
        load_in_8bit=wanted.bits == 8,
        bnb_4bit_quant_type=wanted.code,
        bnb_4bit_use_double_quant=wanted.double,
        bnb_4bit_compute_dtype=dtype if isinstance(dtype, torch.dtype) else None,
    )
    return {"quantization_config": settings, "device_map": {"": device}}


def keep_layout(model: Any) -> None:
    """Keep 4 bit weights as they were made, whatever is computed with them.

    On some CPUs bitsandbytes repacks a layer the first time it is evaluated: scales are rounded to bfloat16 for good,
    products are made in bfloat16, and widths must be multiples of 64. A training that is measured on the way would
    then go on with other weights than one that is not.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
