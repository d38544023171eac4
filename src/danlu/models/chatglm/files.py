"""Weights as the scripts of 2023 left them: .bin or safetensors, whole or in shards, read name by name."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from danlu.core.errors import ModelError
from danlu.models.sources import read_folder_json

WHOLE = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def tensor_files(folder: Path) -> dict[Path, list[str]]:
    """The weight files of a folder and the names of the tensors in each; empty when there are none.

    Of files that hold the same weights twice, safetensors and .bin, the first kind is meant.

    Raises:
        ModelError: when a file is damaged.
    """
    for name in INDEXES:
        if (folder / name).is_file():
            files: dict[Path, list[str]] = {}
            for tensor, file in read_folder_json(folder / name).get("weight_map", {}).items():
                files.setdefault(folder / file, []).append(tensor)
            return files
    found = next((folder / name for name in WHOLE if (folder / name).is_file()), None)
    return {found: tensor_names(found)} if found else {}


def tensor_names(file: Path) -> list[str]:
    """Names of the tensors in a file, without reading them where its format allows that.

    Raises:
        ModelError: when it is damaged.
    """
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="pt") as tensors:
                return list(tensors.keys())
        except (OSError, SafetensorError) as error:
            raise ModelError(f"it cannot be read ({error})", where=str(file)) from error
    return [name for name, value in _unpickled(file).items() if isinstance(value, Tensor)]


def read_from(file: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Some tensors of a file.

    Raises:
        ModelError: when the file is damaged, or one of them is not there.
    """
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="pt") as tensors:
                return {name: tensors.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise ModelError(f"it cannot be read ({error})", where=str(file)) from error
    held = _unpickled(file)
    missing = [name for name in names if name not in held]
    if missing:
        raise ModelError(f"there is no tensor {missing[0]}", where=str(file))
    return {name: held[name].clone() for name in names}


def _unpickled(file: Path) -> dict[str, Any]:
    """What torch saved, tensors only (no code in the file is run), from the disk where the format allows that."""
    import torch

    try:
        try:
            held = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format of torch before 1.6 cannot be mapped
            held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch errors share no base class
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"it cannot be read ({first})", where=str(file), hint="Check that the file was copied whole."
        ) from error
    if not isinstance(held, dict):
        raise ModelError("it holds no named tensors", where=str(file))
    return held
