"""What option groups are written with: types of values, and a field with its one-line documentation."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from danlu.core.config import split_words


def trackers(value: Any) -> Any:
    """As :func:`split_words`, and ``none`` is an empty list (also the YAML words ``no`` and ``false``)."""
    words = [] if value is False else split_words(value)
    return [] if words in (["none"], ["None"], ("none",)) else words


def schedule(value: Any) -> Any:
    """YAML 1.1 reads a bare ``no`` as false."""
    return "no" if value is False else value


def mapping(value: Any) -> Any:
    """A mapping, its JSON text, or None for an empty one."""
    if isinstance(value, str) and value.strip().startswith("{"):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"it is not valid JSON ({error})") from None
    return {} if value is None else _numbers(value)


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads ``1e-5`` as text; where no type says otherwise it is a number."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    return float(value) if isinstance(value, str) and _POWER.fullmatch(value) else value


def path_or_mapping(value: Any) -> Any:
    """A path, or a mapping as JSON text."""
    return mapping(value) if isinstance(value, str) and value.strip().startswith("{") else value


def text_or_bool(value: Any) -> Any:
    """``"true"`` and ``"false"`` are truth values, any other text stays text."""
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


def digits(value: Any) -> Any:
    """``"4"`` is 4 where only some numbers are allowed."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


_POWER = re.compile(r"[-+]?\d+\.?\d*[eE][-+]?\d+")

Numbers = Annotated[tuple[float, ...], BeforeValidator(split_words)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Bits = Annotated[Literal[4, 8], BeforeValidator(digits)]
Schedule = Annotated[Literal["no", "steps", "epoch"], BeforeValidator(schedule)]
Mapping = Annotated[dict[str, Any], BeforeValidator(mapping)]


def option(default: Any, text: str, **limits: Any) -> Any:
    """A field with its one-line documentation."""
    return Field(default, description=text, **limits)
