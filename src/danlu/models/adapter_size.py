"""How many numbers an adapter has that is trained further, from its files alone."""

from __future__ import annotations

from math import prod
from pathlib import Path

FROZEN_PARTS = ("vera_A", "vera_B")
"""Parts of an adapter's file that are not trained: VeRA's random matrices."""

SAFE_FILES = ("prefix_encoder.safetensors", "adapter_model.safetensors")


def adapter_parameters(folder: Path) -> int:
    """How many numbers an adapter has; of a prefix those of its network, if it has one. 0 where there is no adapter.

    Raises:
        ModelError: when it is damaged.
    """
    from danlu.models.chatglm.lora import copies
    from danlu.models.chatglm.prefix import count_prefix

    shapes = _shapes(folder)
    trained = (name for name in shapes if name.rsplit(".", 1)[-1] not in FROZEN_PARTS)
    return sum(copies(name) * prod(shapes[name]) for name in trained) if shapes else count_prefix(folder)


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    from danlu.models.chatglm.lora import read_lora

    file = next((folder / name for name in SAFE_FILES if (folder / name).is_file()), None)
    if file is not None:
        with safe_open(file, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    if (folder / "adapter_model.bin").is_file():
        return {name: tuple(tensor.shape) for name, tensor in read_lora(folder).items()}
    return {}
