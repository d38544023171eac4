"""The data room: rows of every format, templates, tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from danlu.data.loading import load_dataset

__all__ = ["load_dataset"]


def __getattr__(name: str) -> Any:
    if name == "load_dataset":
        from danlu.data.loading import load_dataset

        return load_dataset
    raise AttributeError(f"module 'danlu.data' has no attribute {name!r}")
