"""sharegpt: ``{"conversations": [{"from": "human", "value": "…"}, …], "system", "tools": "[…]"}``.

Turns of ``function_call`` hold the call as JSON text, ``observation`` the tool's result. In pairs the
conversation stops before the answer and ``chosen`` and ``rejected`` hold a message each; KTO adds ``label``.
"""

from __future__ import annotations

from typing import Any

from danlu.data.formats.outcome import finish, is_pair, pair
from danlu.data.formats.shape import Columns, Format, Shape, Tags
from danlu.data.formats.turns import (
    dump,
    is_thought,
    optional_text,
    read_messages,
    read_tools,
    refuse_media,
    with_system,
    write_call,
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

_NAMES = {"user": "human", "assistant": "gpt", "tool": "observation", "system": "system"}


def read(value: dict[str, Any], shape: Shape, origin: Origin) -> Row:
    """Read one row; see the module."""
    columns = shape.columns
    refuse_media(value, shape)
    field = columns.messages or "conversations"
    messages = read_messages(value.get(field), field, shape.tags, shape.roles)
    system = optional_text(value.get(columns.system), columns.system) if columns.system else ""
    tools = read_tools(value.get(columns.tools), columns.tools) if columns.tools else ()
    conversation = Conversation(with_system(messages, system), tools)
    if is_pair(value, shape):
        return pair(value, shape, conversation, origin, field)
    return finish(value, shape, conversation, origin, field)


def write(row: Row) -> dict[str, Any]:
    """Write one row. What is trained turn by turn, and text beside a call, have no place here."""
    match row:
        case Example(conversation):
            return _conversation(conversation)
        case UnpairedPreference(conversation, desirable):
            return {**_conversation(conversation), "label": desirable}
        case Preference(prompt, chosen, rejected, margin):
            value = {**_conversation(prompt), "chosen": _turn(chosen), "rejected": _turn(rejected)}
            return value if margin is None else {**value, "margin": margin}
        case Document():
            raise CannotHold("plain text has no turns")


def _conversation(conversation: Conversation) -> dict[str, Any]:
    system = conversation.system
    turns = conversation.messages if system is None else conversation.messages[1:]
    value: dict[str, Any] = {"conversations": [_turn(message) for message in turns]}
    if system is not None:
        value["system"] = system
    if conversation.tools:
        value["tools"] = "[" + ", ".join(conversation.tools) + "]"
    return value


def _turn(message: Message) -> dict[str, Any]:
    if not message.tool_calls:
        return {"from": _NAMES[message.role], "value": message.content}
    calls = [write_call(call) for call in message.tool_calls]
    text = dump(calls[0] if len(calls) == 1 else calls)
    return {"from": "function_call", "value": (message.content if is_thought(message.content) else "") + text}


COLUMNS = Columns(
    prompt=None,
    query=None,
    response=None,
    messages="conversations",
    system="system",
    tools="tools",
    chosen="chosen",
    rejected="rejected",
    kto_tag="label",
)
FORMAT = Format(read, write, COLUMNS, tags=Tags(), keys=frozenset({"margin"}))
