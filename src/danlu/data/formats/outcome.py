"""What a row says about its answer: it is the example, it is wanted or not, or it beats another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from danlu.data.formats.shape import OPENAI_TAGS, Shape, Tags
from danlu.data.formats.turns import answered, list_at, prompt_of, read_message, read_messages, text_at
from danlu.data.rows import RowError, kind_of
from danlu.data.schema import (
    Conversation,
    Example,
    Message,
    Origin,
    Preference,
    Row,
    UnpairedPreference,
)

_LABELS = {"true": True, "1": True, "false": False, "0": False}


def is_pair(value: dict[str, Any], shape: Shape) -> bool:
    """Whether the row is a pair of answers under the columns ``chosen`` and ``rejected``."""
    chosen, rejected = shape.columns.chosen, shape.columns.rejected
    return shape.ranking or (value.get(chosen or "") is not None and value.get(rejected or "") is not None)


def finish(
    value: dict[str, Any],
    shape: Shape,
    conversation: Conversation,
    origin: Origin,
    field: str,
) -> Row:
    """The row of a finished conversation: wanted or not when it is labelled, else an example."""
    answered(conversation, field)
    tag = shape.columns.kto_tag
    if tag is not None and value.get(tag) is not None:
        prompt_of(conversation.messages[:-1], conversation.tools, field)  # an answer to nothing is neither
        return UnpairedPreference(conversation, read_label(value[tag], tag), origin)
    return Example(conversation, origin)


def read_label(value: Any, field: str) -> bool:
    """True or false, also as text or number."""
    label = value if isinstance(value, bool) else _LABELS.get(str(value).strip().lower())
    if label is None:
        raise RowError(
            field,
            f"true or false is expected, this is {value!r}"
            if isinstance(value, str)
            else (f"true or false is expected, this is {kind_of(value)}"),
        )
    return label


def pair(
    value: dict[str, Any],
    shape: Shape,
    prompt: Conversation,
    origin: Origin,
    field: str,
) -> Preference:
    """A preference from the columns ``chosen`` and ``rejected``: text, a message, or a list of messages."""
    chosen_at = shape.columns.chosen or "chosen"
    rejected_at = shape.columns.rejected or "rejected"
    chosen = answer_at(value.get(chosen_at), chosen_at, shape.tags, shape.roles)
    rejected = answer_at(value.get(rejected_at), rejected_at, shape.tags, shape.roles)
    start, better, worse = divide(prompt.messages, chosen, rejected, (chosen_at, rejected_at))
    return Preference(prompt_of(start, prompt.tools, field), better, worse, read_margin(value), origin)


def read_margin(value: dict[str, Any]) -> float | None:
    """How much better the chosen answer is, if the row says so."""
    margin = value.get("margin")
    if margin is None:
        return None
    if isinstance(margin, bool) or not isinstance(margin, (int, float)):
        raise RowError("margin", f"a number is expected, this is {kind_of(margin)}")
    if not math.isfinite(margin):
        raise RowError("margin", f"a finite number is expected, this is {margin}")
    return float(margin)


def answer_at(value: Any, field: str, tags: Tags = OPENAI_TAGS, roles: dict[str, str] | None = None) -> list[Message]:
    """An answer in any shape, as messages; the last one is the answer."""
    if isinstance(value, dict):
        message = read_message(value, field, tags, roles)
        messages = [message] if message else []
    elif isinstance(value, list):
        messages = read_messages(list_at(value, field), field, tags, roles)
    else:
        messages = [Message("assistant", text_at(value, field, what="answer"))]
    if not messages or messages[-1].role != "assistant":
        raise RowError(field, "it does not end with an answer of the assistant")
    return messages


def divide(
    prompt: Sequence[Message],
    chosen: Sequence[Message],
    rejected: Sequence[Message],
    names: tuple[str, str],
) -> tuple[list[Message], Message, Message]:
    """Split two whole conversations (or answers to ``prompt``) into what they share and their last answers.

    ``names`` are the fields of the two, for errors.
    """
    for name, answer in zip(names, (chosen, rejected), strict=True):
        if len(answer) > 1 and len(answer) <= len(prompt):
            raise RowError(name, "it has several messages but does not repeat the prompt")
    first, second = list(chosen[:-1]), list(rejected[:-1])
    if not prompt and not first and not second:
        raise RowError(names[0], "there is no prompt")
    given = list(prompt)
    starts = [start or given for start in (first, second)]
    starts = [given + start if given and start[: len(given)] != given else start for start in starts]
    if starts[0] != starts[1]:
        raise RowError(names[1], "the two answers belong to different prompts; only the last answer may differ")
    return starts[0], chosen[-1], rejected[-1]


def split_answer(conversation: Conversation) -> tuple[tuple[Message, ...], Message]:
    """A conversation without its last answer, and that answer."""
    return conversation.messages[:-1], conversation.messages[-1]
