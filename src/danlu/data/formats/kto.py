"""kto: ``{"prompt", "completion", "label"}``: an answer that is wanted (true) or not; text or messages."""

from __future__ import annotations

from typing import Any

from danlu.data.formats.openai import write_message, write_tools
from danlu.data.formats.outcome import answer_at, read_label, split_answer
from danlu.data.formats.preference import read_prompt
from danlu.data.formats.shape import Columns, Format, Shape
from danlu.data.formats.turns import answered, optional_text, prompt_of, read_tools, refuse_media, with_system
from danlu.data.rows import CannotHold, RowError
from danlu.data.schema import Conversation, Origin, Row, UnpairedPreference


def read(value: dict[str, Any], shape: Shape, origin: Origin) -> Row:
    """Read one row; see the module."""
    columns = shape.columns
    refuse_media(value, shape)
    field, answer_field, label = (
        columns.prompt or "prompt",
        columns.response or "completion",
        columns.kto_tag or "label",
    )
    prompt = read_prompt(value.get(field), field, shape)
    if value.get(label) is None:
        raise RowError(label, "the label is missing")
    system = optional_text(value.get(columns.system), columns.system) if columns.system else ""
    tools = read_tools(value.get(columns.tools), columns.tools) if columns.tools else ()
    start = prompt_of(with_system(prompt, system), tools, field)
    answer = answer_at(value.get(answer_field), answer_field, shape.tags, shape.roles)
    conversation = answered(Conversation((*start.messages, *answer), tools), answer_field)
    return UnpairedPreference(conversation, read_label(value[label], label), origin)


def write(row: Row) -> dict[str, Any]:
    """Write a labelled answer; other rows have no label."""
    if not isinstance(row, UnpairedPreference):
        raise CannotHold("there is no label that says whether the answer is wanted")
    prompt, answer = split_answer(row.conversation)
    return {
        "prompt": [write_message(message) for message in prompt],
        "completion": [write_message(answer)],
        **write_tools(row.conversation.tools),
        "label": row.desirable,
    }


COLUMNS = Columns(
    prompt="prompt",
    query=None,
    response="completion",
    messages=None,
    system="system",
    tools="tools",
    kto_tag="label",
)
FORMAT = Format(read, write, COLUMNS)
