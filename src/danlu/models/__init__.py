"""The models room: finding, loading, adapting and exporting models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from danlu.models.loading import load_model, load_tokenizer

__all__ = ["load_model", "load_tokenizer"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from danlu.models import loading

        return getattr(loading, name)
    raise AttributeError(f"module 'danlu.models' has no attribute {name!r}")
