"""Models: found, loaded, adapted, merged, written. Nothing heavy is imported before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from danlu.models.adapters import attach
    from danlu.models.loading import load_model, load_tokenizer
    from danlu.models.runs import open_run
    from danlu.models.sources import resolve_model

__all__ = ["attach", "load_model", "load_tokenizer", "open_run", "resolve_model"]

_HOMES = {
    "attach": "adapters",
    "load_model": "loading",
    "load_tokenizer": "loading",
    "open_run": "runs",
    "resolve_model": "sources",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
