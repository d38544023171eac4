"""text: ``{"text": "…"}``, for pre-training."""

from __future__ import annotations

from typing import Any

from danlu.data.formats.shape import Columns, Format, Shape
from danlu.data.formats.turns import refuse_media, text_at
from danlu.data.rows import CannotHold
from danlu.data.schema import Document, Origin, Row


def read(value: dict[str, Any], shape: Shape, origin: Origin) -> Row:
    """Read one text."""
    refuse_media(value, shape)
    column = shape.columns.prompt or "text"
    return Document(text_at(value.get(column), column), origin)


def write(row: Row) -> dict[str, Any]:
    """Write one text; a conversation becomes text only through a template."""
    if not isinstance(row, Document):
        raise CannotHold("a conversation becomes plain text only through a model's template")
    return {"text": row.text}


FORMAT = Format(read, write, Columns(prompt="text", query=None, response=None, messages=None))
