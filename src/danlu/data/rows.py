"""Rows before they have a meaning, and rows that have none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from danlu.data.schema import Conversation, Origin

WHOLE_FILE = "file"
"""Field of a :class:`BadRow` that stands for a file which cannot be read at all."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """One object as the file holds it: names of columns to values."""

    value: dict[str, Any]
    origin: Origin


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used: a value, not an exception, so that it never hides the next one.

    Attributes:
        origin: its place.
        field: the path inside the row, for instance ``conversations[2].value``; empty for the row itself.
        message: what is wrong, without a final full stop.
        prompt: the conversation of a row that lacks nothing but its answer.
    """

    origin: Origin
    field: str
    message: str
    prompt: Conversation | None = None

    @property
    def place(self) -> str:
        """``file:line:field``, as compilers write it."""
        if self.field == WHOLE_FILE:
            return self.origin.path
        return f"{self.origin}:{self.field}" if self.field else str(self.origin)

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class RowError(Exception):
    """Raised inside a format's reader; the caller turns it into a :class:`BadRow`."""

    def __init__(self, field: str, message: str, prompt: Conversation | None = None) -> None:
        super().__init__(field, message)
        self.field = field
        self.message = message
        self.prompt = prompt


class CannotHold(Exception):
    """Raised by a format's writer for a row that has no place in the format at all; carries the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def kind_of(value: object) -> str:
    """What a JSON value is called in messages, for instance "a number"."""
    names: dict[type, str] = {bool: "true or false", int: "a number", float: "a number", str: "text"}
    names |= {list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")
