"""Rows in a few words, for the tests of formats."""

from __future__ import annotations

from typing import Any

from danlu.data.formats import read_row
from danlu.data.formats.detect import detect
from danlu.data.formats.shape import Shape
from danlu.data.rows import BadRow
from danlu.data.schema import (
    Conversation,
    Example,
    Message,
    Origin,
    Preference,
    Row,
    ToolCall,
    UnpairedPreference,
)

HERE = Origin("rows.json", 7, 3)


def read(value: dict[str, Any], shape: Shape | None = None) -> Row | BadRow:
    return read_row(value, shape or detect([value], where="rows.json"), HERE)


def turns(*contents: str) -> tuple[Message, ...]:
    """Question, answer, question, answer, …"""
    return tuple(Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(contents))


def example(*contents: str) -> Example:
    return Example(Conversation(turns(*contents)))


WEATHER = ToolCall("weather", '{"city": "北京"}')
TOOL = '{"name": "weather", "parameters": {}}'
PAIR = Preference(Conversation(turns("q")), Message("assistant", "good"), Message("assistant", "bad"))
WANTED = UnpairedPreference(Conversation(turns("q", "a")), True)
ANSWER = {"role": "assistant", "content": "a"}


def chat(*messages: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "q"}, *messages]}
