"""native: content blocks with a weight for each turn, as LLaMA-Factory's rewrite (v1) keeps them.

``{"messages": [{"role", "content": [{"type": "text", "value": "…"}], "loss_weight": 1.0}, …]}``; pairs hold
two whole conversations, ``chosen_messages`` and ``rejected_messages``. Weights are 0 or 1.
"""

from __future__ import annotations

from typing import Any

from danlu.data.formats import sharegpt
from danlu.data.formats.outcome import divide, read_margin
from danlu.data.formats.shape import Columns, Format, Shape
from danlu.data.formats.turns import dump, prompt_of, read_messages, read_tools, write_call
from danlu.data.rows import CannotHold, RowError
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
    columns = shape.columns
    if (columns.chosen or "") not in value:
        return sharegpt.read(value, shape, origin)
    chosen_at, rejected_at = columns.chosen or "", columns.rejected or "rejected_messages"
    chosen = read_messages(value.get(chosen_at), chosen_at, shape.tags, shape.roles)
    rejected = read_messages(value.get(rejected_at), rejected_at, shape.tags, shape.roles)
    for name, messages in ((chosen_at, chosen), (rejected_at, rejected)):
        if not messages or messages[-1].role != "assistant":
            raise RowError(name, "it does not end with an answer of the assistant")
    prompt, better, worse = divide((), chosen, rejected, (chosen_at, rejected_at))
    tools = read_tools(value.get(columns.tools), columns.tools) if columns.tools else ()
    return Preference(prompt_of(prompt, tools, chosen_at), better, worse, read_margin(value), origin)


def write(row: Row) -> dict[str, Any]:
    """Write one row; only plain text has no place here."""
    match row:
        case Example(conversation):
            return {"messages": _turns(conversation), **_tools(conversation)}
        case UnpairedPreference(conversation, desirable):
            return {"messages": _turns(conversation), **_tools(conversation), "label": desirable}
        case Preference(prompt, chosen, rejected, margin):
            start = _turns(prompt)
            value = {
                "chosen_messages": [*start, _turn(chosen)],
                "rejected_messages": [*start, _turn(rejected)],
            }
            value |= _tools(prompt)
            return value if margin is None else {**value, "margin": margin}
        case Document():
            raise CannotHold("plain text has no turns")


def _tools(conversation: Conversation) -> dict[str, Any]:
    return {"tools": "[" + ", ".join(conversation.tools) + "]"} if conversation.tools else {}


def _turns(conversation: Conversation) -> list[dict[str, Any]]:
    return [_turn(message) for message in conversation.messages]


def _turn(message: Message) -> dict[str, Any]:
    blocks = [{"type": "text", "value": message.content}] if message.content else []
    blocks += [{"type": "tool_call", "value": dump(write_call(call))} for call in message.tool_calls]
    value: dict[str, Any] = {"role": message.role, "content": blocks}
    if message.train is not None:
        value["loss_weight"] = float(message.train)
    return value


COLUMNS = Columns(
    prompt=None,
    query=None,
    response=None,
    messages="messages",
    system="system",
    tools="tools",
    chosen="chosen_messages",
    rejected="rejected_messages",
    kto_tag="label",
)
FORMAT = Format(read, write, COLUMNS, keys=frozenset({"margin"}))
