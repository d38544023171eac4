"""openai: ``{"messages": [{"role", "content", "tool_calls"}, …], "tools": […]}``, as ms-swift writes it too.

A message may say ``"loss": false`` (its turn is not trained). Pairs: ``chosen`` and ``rejected`` answer
``messages``; or ``messages`` ends with the better answer and ``rejected_response`` (a text) or
``rejected_messages`` (a whole conversation) holds the worse. KTO adds ``label``.
"""

from __future__ import annotations

from typing import Any

from danlu.data.formats import sharegpt
from danlu.data.formats.outcome import answer_at, divide, read_margin
from danlu.data.formats.shape import Columns, Format, Shape
from danlu.data.formats.turns import (
    optional_text,
    prompt_of,
    read_messages,
    read_tools,
    with_system,
)
from danlu.data.rows import CannotHold
from danlu.data.schema import (
    Conversation,
    Document,
    Example,
    Message,
    Origin,
    Preference,
    Row,
    UnpairedPreference,
)


def read(value: dict[str, Any], shape: Shape, origin: Origin) -> Row:
    """Read one row; see the module."""
    for name in ("rejected_response", "rejected_messages"):
        if value.get(name) is not None:
            return _against(value, name, shape, origin)
    return sharegpt.read(value, shape, origin)


def _against(value: dict[str, Any], name: str, shape: Shape, origin: Origin) -> Preference:
    columns = shape.columns
    field = columns.messages or "messages"
    whole = read_messages(value.get(field), field, shape.tags, shape.roles)
    rejected = answer_at(value[name], name, shape.tags, shape.roles)
    prompt = whole[:-1] if name == "rejected_response" else []
    start, better, worse = divide(prompt, whole[-1:] if prompt else whole, rejected, (field, name))
    system = optional_text(value.get(columns.system), columns.system) if columns.system else ""
    tools = read_tools(value.get(columns.tools), columns.tools) if columns.tools else ()
    conversation = prompt_of(with_system(start, system), tools, field)
    return Preference(conversation, better, worse, read_margin(value), origin)


def write(row: Row) -> dict[str, Any]:
    """Write one row; only plain text has no place here."""
    match row:
        case Example(conversation):
            return write_conversation(conversation)
        case UnpairedPreference(conversation, desirable):
            return {**write_conversation(conversation), "label": desirable}
        case Preference(prompt, chosen, rejected, margin):
            value = write_conversation(prompt)
            value |= {"chosen": write_message(chosen), "rejected": write_message(rejected)}
            return value if margin is None else {**value, "margin": margin}
        case Document():
            raise CannotHold("plain text has no turns")


def write_conversation(conversation: Conversation) -> dict[str, Any]:
    """``messages`` and, if there are any, ``tools``."""
    value: dict[str, Any] = {"messages": [write_message(message) for message in conversation.messages]}
    return {**value, **write_tools(conversation.tools)}


def write_tools(tools: tuple[str, ...]) -> dict[str, Any]:
    """The column ``tools`` as objects; nothing when there are none."""
    from json import loads

    return {"tools": [loads(tool) for tool in tools]} if tools else {}


def write_message(message: Message) -> dict[str, Any]:
    """One message with its calls; arguments stay the text they are, as in OpenAI's own format."""
    value: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        value["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.train is not None:
        value["loss"] = message.train
    return value


COLUMNS = Columns(
    prompt=None,
    query=None,
    response=None,
    messages="messages",
    system="system",
    tools="tools",
    chosen="chosen",
    rejected="rejected",
    kto_tag="label",
)
KEYS = frozenset({"margin", "rejected_response", "rejected_messages"})
FORMAT = Format(read, write, COLUMNS, keys=KEYS)
