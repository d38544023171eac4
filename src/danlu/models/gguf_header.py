"""What stands before the weights of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

FACTORS = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class Header:
    """The beginning of a GGUF file.

    Attributes:
        fields: the metadata, by key.
        tensors: names of the tensors.
        factors: what rotary frequencies are divided by (the tensor ``rope_freqs.weight``), or None.
    """

    fields: Mapping[str, Any]
    tensors: frozenset[str]
    factors: tuple[float, ...] | None


def read_header(file: Path) -> Header:
    """Read the beginning of a GGUF file; the last one is remembered, because a large vocabulary takes seconds.

    Raises:
        ValueError: when the file is damaged.
    """
    status = file.stat()
    return _read(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1)
def _read(file: Path, size: int, changed: int) -> Header:
    import gguf

    reader = gguf.GGUFReader(file)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    factors = next((tuple(map(float, item.data)) for item in reader.tensors if item.name == FACTORS), None)
    return Header(fields, frozenset(item.name for item in reader.tensors), factors)


def read_fields(file: Path) -> Mapping[str, Any]:
    """The metadata of a GGUF file, by key; see :func:`read_header`."""
    return read_header(file).fields
