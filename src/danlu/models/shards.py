"""Weight files one tensor at a time: whole models pass through memory that holds one tensor.

:mod:`danlu.models.weights` writes models that are in memory; this is for models that need not be.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from danlu.core.errors import ModelError
from danlu.core.files import write_json
from danlu.models.sources import read_folder_json

PATTERNS = {
    "model.safetensors.index.json": "model*.safetensors",
    "pytorch_model.bin.index.json": "pytorch_model*.bin",
}
"""Index and weight files of a model folder; the first kind that is there is the one that counts."""

CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
NAMES = {code: name for name, code in CODES.items()}
"""Element types as torch and as safetensors call them, both ways."""

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "BOOL": 1}
ALIGNMENT = 8
POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: its shape and element type (``F16``, as safetensors calls it)."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Bytes of its elements."""
        return prod(self.shape) * WIDTHS[self.dtype]


class Shards:
    """The weight files of a model folder, opened one at a time, tensors read when they are asked for.

    Args:
        folder: a model folder; safetensors win over .bin files.

    Attributes:
        stored: name → what is stored, in the order of the files.

    Raises:
        ModelError: for a missing or damaged file, and for a pickle that holds more than tensors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stored: dict[str, Stored] = {}
        self._place: dict[str, Path] = {}
        self._open: tuple[Path, Any] | None = None
        for path in _files(folder):
            for entry in self._facts(path):
                self.stored[entry.name] = entry
                self._place[entry.name] = path

    def read(self, name: str) -> Any:
        """One tensor, on the CPU. Read in the order of ``stored`` so that no file is opened twice."""
        path = self._place[name]
        handle = self._handle(path)
        try:
            return handle.get_tensor(name) if path.suffix == ".safetensors" else handle[name]
        except Exception as error:  # what safetensors raises for a file that is cut off
            raise _damaged(path, error) from error

    def _facts(self, path: Path) -> Iterator[Stored]:
        handle = self._handle(path)
        if path.suffix == ".safetensors":
            for name in handle.keys():  # noqa: SIM118 - it is no dict
                part = handle.get_slice(name)
                yield Stored(name, tuple(part.get_shape()), part.get_dtype())
            return
        for name, tensor in handle.items():
            yield Stored(name, tuple(tensor.shape), CODES.get(str(tensor.dtype).removeprefix("torch."), "unknown"))

    def _handle(self, path: Path) -> Any:
        if self._open is None or self._open[0] != path:
            self._open = None  # the former file is let go before the next one is opened
            self._open = (path, _opened(path))
        return self._open[1]


def _files(folder: Path) -> list[Path]:
    for name, pattern in PATTERNS.items():
        index = folder / name
        if index.is_file():
            places = sorted({folder / file for file in read_folder_json(index).get("weight_map", {}).values()})
            gone = [place for place in places if not place.is_file()]
            if gone:
                raise ModelError(f"the weight file {gone[0].name} is missing", where=str(folder))
            return places
        places = sorted(folder.glob(pattern))
        if places:
            return places
    raise ModelError("the model folder has no weights", where=str(folder))


def _opened(path: Path) -> Any:
    """A safetensors reader, or the mapping of a .bin file whose tensors lie on the disk until they are used."""
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            return safe_open(str(path), framework="pt", device="cpu")
        import torch

        mapped = zip_file(path)  # files of torch before 1.6 are no archives and have to be read whole
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # safetensors, pickle and zip errors share no base class
        raise _damaged(path, error) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(hasattr(value, "shape") for value in state.values()):
        raise ModelError("it holds something else than tensors by name", where=str(path))
    return state


def zip_file(path: Path) -> bool:
    """Whether a file is a zip archive, as torch.save writes since 1.6."""
    with path.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _damaged(path: Path, error: Exception) -> ModelError:
    with path.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            return ModelError(
                "this is a pointer of Git LFS, not the weights themselves",
                where=str(path),
                hint="Fetch the real file, for instance with `git lfs pull`.",
            )
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    if path.suffix == ".bin":
        reason = reason.partition(". ")[0]  # torch goes on with advice about its own arguments
        if reason == "Weights only load failed":
            reason = "it is no file of torch.save, or holds more than tensors"
    return ModelError(
        f"the weight file cannot be read ({reason})",
        where=str(path),
        hint="Check that it was copied whole.",
    )


def split_shards(tensors: Sequence[Stored], limit: int) -> list[list[Stored]]:
    """Cut a sequence of tensors into files of at most ``limit`` bytes; a larger tensor gets a file of its own."""
    shards: list[list[Stored]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.size > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.size
    return shards


def write_shards(
    folder: Path, tensors: Sequence[Stored], values: Iterable[Any], *, limit: int, legacy_bin: bool = False
) -> None:
    """Write weight files, and their index where there are several.

    Of safetensors files one tensor is in memory at a time, of .bin files all those of one file.

    Args:
        folder: an existing folder.
        tensors: what will be written, in this order.
        values: the tensors themselves, in the same order and of these shapes and types; may be a generator.
        limit: largest file in bytes.
        legacy_bin: pickled ``pytorch_model*.bin`` instead of safetensors.

    Raises:
        OSError: when the disk is full.
        ValueError: when a value is not what ``tensors`` announced.
    """
    shards = split_shards(tensors, limit)
    index, pattern = list(PATTERNS.items())[legacy_bin]
    rest = iter(values)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = pattern.replace("*", "" if len(shards) == 1 else f"-{number:05d}-of-{len(shards):05d}")
        if legacy_bin:
            save_pickled({tensor.name: _checked(tensor, next(rest)).clone() for tensor in shard}, folder / name)
        else:
            _write_file(folder / name, shard, rest)
        places |= dict.fromkeys((tensor.name for tensor in shard), name)
    if len(shards) > 1:
        total = sum(tensor.size for tensor in tensors)
        write_json(folder / index, {"metadata": {"total_size": total}, "weight_map": places})


def save_pickled(tensors: dict[str, Any], path: Path) -> None:
    """One .bin file of tensors by name; a tensor that is part of another one must be a copy.

    Raises:
        OSError: when the disk is full.
    """
    import torch

    try:
        torch.save(tensors, path)
    except RuntimeError as error:  # how torch reports a full disk
        raise OSError(f"writing {path.name} failed: {str(error).splitlines()[0]}") from error


def _write_file(path: Path, tensors: Sequence[Stored], values: Iterator[Any]) -> None:
    """One safetensors file: length of the header (8 bytes, little-endian), header as JSON, the elements."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.size],
        }
        offset += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for tensor in tensors:
            stream.write(_elements(tensor, next(values)))


def _elements(announced: Stored, value: Any) -> Any:
    import torch

    return memoryview(_checked(announced, value).reshape(-1).view(torch.uint8).numpy())


def _checked(announced: Stored, value: Any) -> Any:
    """The tensor on the CPU, contiguous, if it is what was announced."""
    code = CODES.get(str(value.dtype).removeprefix("torch."))
    if tuple(value.shape) != announced.shape or code != announced.dtype:
        raise ValueError(f"{announced.name} is {tuple(value.shape)} {value.dtype}, not {announced}")
    return value.detach().cpu().contiguous()
