"""Layouts of rows by name, each in a module of its own; other packages add to them as ``danlu.formats``."""

from __future__ import annotations

from typing import Any

from danlu.core.registry import Registry
from danlu.data.formats.shape import Format, Shape
from danlu.data.rows import BadRow, RowError
from danlu.data.schema import Origin, Row

FORMATS = Registry(
    "format",
    {
        "alpaca": "danlu.data.formats.alpaca:FORMAT",
        "pair": "danlu.data.formats.alpaca:PAIR",
        "sharegpt": "danlu.data.formats.sharegpt:FORMAT",
        "openai": "danlu.data.formats.openai:FORMAT",
        "native": "danlu.data.formats.native:FORMAT",
        "rounds": "danlu.data.formats.rounds:FORMAT",
        "preference": "danlu.data.formats.preference:FORMAT",
        "kto": "danlu.data.formats.kto:FORMAT",
        "text": "danlu.data.formats.text:FORMAT",
    },
)


def usual_shape(name: str, separator: str = "\n") -> Shape:
    """The shape of a file as :func:`write_row` makes it: every usual column under its usual name."""
    layout: Format = FORMATS[name]
    return Shape(name, layout.columns, layout.tags, separator=separator)


def read_row(value: dict[str, Any], shape: Shape, origin: Origin) -> Row | BadRow:
    """Read one raw row; what is wrong with it comes back as a value."""
    layout: Format = FORMATS[shape.format]
    try:
        return layout.read(value, shape, origin)
    except RowError as error:
        return BadRow(origin, error.field, error.message, error.prompt)


def write_row(row: Row, name: str) -> dict[str, Any]:
    """Write one row in the format ``name``.

    Raises:
        CannotHold: when the format has no place for such a row.
    """
    layout: Format = FORMATS[name]
    return layout.write(row)
