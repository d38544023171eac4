"""Values of old keys as ours. The tables name these functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from danlu.cli.compat.vocabulary import Kind, truth
from danlu.core.errors import ConfigError


def negation(value: Any, place: str) -> bool:
    """``resume_lora_training: false`` → ``create_new_adapter: true``."""
    return not _bool(value, place)


def trainable_modules(value: Any, place: str) -> Any:
    """The old tool's ``qkv`` is the fused attention projection of ChatGLM."""
    del place
    return "query_key_value" if value == "qkv" else value


def fsdp_layer(value: Any, place: str) -> dict[str, Any]:
    """A layer class as an entry of ``fsdp_config``."""
    del place
    return {"transformer_layer_cls_to_wrap": value if isinstance(value, list) else [str(value)]}


def fsdp_size(value: Any, place: str) -> dict[str, Any]:
    """A number of parameters as an entry of ``fsdp_config``."""
    return {"min_num_params": coerce(value, "integer", place)}


def galore(value: Any, place: str) -> str | None:
    """``use_galore: true`` → ``optim: galore_adamw``; false asks for nothing."""
    return "galore_adamw" if _bool(value, place) else None


def muon(value: Any, place: str) -> str | None:
    """``use_muon: true`` → ``optim: muon``; false asks for nothing."""
    return "muon" if _bool(value, place) else None


def reentrant(value: Any, place: str) -> dict[str, Any]:
    """A truth value as an entry of ``gradient_checkpointing_kwargs``."""
    return {"use_reentrant": _bool(value, place)}


def count_tokens(value: Any, place: str) -> str:
    """Whether tokens are counted, in the words of transformers."""
    return "all" if _bool(value, place) else "no"


CONVERTERS: dict[str, Callable[[Any, str], Any]] = {
    function.__name__: function
    for function in (negation, trainable_modules, fsdp_layer, fsdp_size, galore, muon, reentrant, count_tokens)
}


def coerce(value: Any, kind: Kind, place: str) -> Any:
    """A value for transformers, which checks no types: text of a command line becomes what ``kind`` says.

    Raises:
        ConfigError: when the text is nothing of the kind.
    """
    if value is None or isinstance(value, bool):
        return value
    try:
        match kind:
            case "bool":
                return _bool(value, place)
            case "integer":
                return int(value)
            case "number":
                return float(value)
            case "list":
                return value.split(",") if isinstance(value, str) else list(value)
            case "text":
                return " ".join(map(str, value)) if isinstance(value, list) else _text(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{value!r} is no {kind}", where=place) from None
    return value


def _text(value: Any) -> Any:
    return value if isinstance(value, dict) else str(value)


def _bool(value: Any, place: str) -> bool:
    return value if isinstance(value, bool) else truth(str(value), place)
