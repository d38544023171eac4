"""rounds: ``{"instruction", "conversations": [{"question", "answer"}, …]}``, as COIG is kept.

The instruction stands in front of the first question.
"""

from __future__ import annotations

from typing import Any

from danlu.data.formats.alpaca import plain, write_prompt
from danlu.data.formats.outcome import finish, split_answer
from danlu.data.formats.shape import Columns, Format, Shape, Tags
from danlu.data.formats.turns import list_at, optional_text, refuse_media, text_at, with_system
from danlu.data.rows import CannotHold, RowError, kind_of
from danlu.data.schema import Conversation, Example, Message, Origin, Row


def read(value: dict[str, Any], shape: Shape, origin: Origin) -> Row:
    """Read one row; see the module."""
    columns, tags = shape.columns, shape.tags
    refuse_media(value, shape)
    field = columns.messages or "conversations"
    lead = optional_text(value.get(columns.prompt), columns.prompt) if columns.prompt else ""
    messages: list[Message] = []
    for index, turn in enumerate(list_at(value.get(field), field)):
        place = f"{field}[{index}]"
        if not isinstance(turn, dict):
            raise RowError(place, f"a round is an object, this is {kind_of(turn)}")
        question = optional_text(turn.get(tags.user_tag), f"{place}.{tags.user_tag}")
        if lead and index == 0:
            question = f"{lead}{shape.separator}{question}" if question else lead
        messages.append(Message("user", text_at(question, f"{place}.{tags.user_tag}", what="question")))
        answer = text_at(turn.get(tags.assistant_tag), f"{place}.{tags.assistant_tag}", what="answer")
        messages.append(Message("assistant", answer))
    system = optional_text(value.get(columns.system), columns.system) if columns.system else ""
    return finish(value, shape, Conversation(with_system(messages, system)), origin, field)


def write(row: Row) -> dict[str, Any]:
    """Write questions and answers by turns; tools have no place here."""
    if not isinstance(row, Example):
        raise CannotHold("only examples have a place in rounds of question and answer")
    prompt, answer = split_answer(row.conversation)
    flat = write_prompt(prompt, ())
    rounds = [*flat.get("history", []), [flat["instruction"], plain(answer)]]
    value: dict[str, Any] = {
        "instruction": "",
        "conversations": [{"question": q, "answer": a} for q, a in rounds],
    }
    return {**value, "system": flat["system"]} if "system" in flat else value


COLUMNS = Columns(query=None, response=None, messages="conversations", system="system")
TAGS = Tags(user_tag="question", assistant_tag="answer")
FORMAT = Format(read, write, COLUMNS, tags=TAGS)
