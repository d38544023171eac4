"""preference: ``{"prompt", "chosen", "rejected", "margin"}``, each a text or a list of messages.

Without ``prompt`` the two conversations share everything but their last answer.
"""

from __future__ import annotations

import json
from typing import Any

from danlu.data.formats.openai import write_message, write_tools
from danlu.data.formats.outcome import pair
from danlu.data.formats.shape import Columns, Format, Shape
from danlu.data.formats.turns import (
    optional_text,
    read_messages,
    read_tools,
    refuse_media,
    text_at,
    with_system,
)
from danlu.data.rows import CannotHold
from danlu.data.schema import Conversation, Message, Origin, Preference, Row


def read(value: dict[str, Any], shape: Shape, origin: Origin) -> Row:
    """Read one row; see the module."""
    columns = shape.columns
    refuse_media(value, shape)
    field = columns.prompt or "prompt"
    prompt = [] if value.get(field) is None else read_prompt(value[field], field, shape)
    system = optional_text(value.get(columns.system), columns.system) if columns.system else ""
    tools = read_tools(value.get(columns.tools), columns.tools) if columns.tools else ()
    return pair(value, shape, Conversation(with_system(prompt, system), tools), origin, field)


def read_prompt(value: Any, field: str, shape: Shape) -> list[Message]:
    """A prompt: one question as text, or a list of messages (also as JSON text)."""
    messages = _messages_in(value) if isinstance(value, str) else value
    if messages is None:
        return [Message("user", text_at(value, field, what="prompt"))]
    return read_messages(messages, field, shape.tags, shape.roles)


def _messages_in(text: str) -> Any:
    """The messages that a table's cell holds as JSON text; None for any other text, also other JSON."""
    if not text.lstrip().startswith("[{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if all(isinstance(item, dict) and ("role" in item or "from" in item) for item in value) else None


def write(row: Row) -> dict[str, Any]:
    """Write a preference; other rows have no second answer."""
    if not isinstance(row, Preference):
        raise CannotHold("there is no worse answer to compare with")
    value: dict[str, Any] = {
        "prompt": [write_message(message) for message in row.prompt.messages],
        "chosen": [write_message(row.chosen)],
        "rejected": [write_message(row.rejected)],
        **write_tools(row.prompt.tools),
    }
    return value if row.margin is None else {**value, "margin": row.margin}


COLUMNS = Columns(
    prompt="prompt",
    query=None,
    response=None,
    messages=None,
    system="system",
    tools="tools",
    chosen="chosen",
    rejected="rejected",
)
FORMAT = Format(read, write, COLUMNS, keys=frozenset({"margin"}))
