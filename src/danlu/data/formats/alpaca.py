"""alpaca: ``{"instruction", "input", "output", "system", "history": [[question, answer], …]}``.

Pairs put ``chosen`` and ``rejected`` in the place of ``output``, or two texts in ``output`` (better first);
KTO adds ``kto_tag``. Instruction and input are joined with a line break, in ChatGLM-Efficient-Tuning with
nothing (``Shape.separator``). A source that names a prompt column and no answer is plain text.
"""

from __future__ import annotations

from typing import Any

from danlu.data.formats.outcome import finish, is_pair, pair, split_answer
from danlu.data.formats.shape import Columns, Format, Shape
from danlu.data.formats.turns import (
    list_at,
    optional_text,
    prompt_of,
    read_tools,
    refuse_media,
    text_at,
    with_system,
)
from danlu.data.rows import CannotHold, RowError, kind_of
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
    refuse_media(value, shape)
    paired = is_pair(value, shape)
    if columns.response is None and not paired:
        place = columns.prompt or "text"
        return Document(text_at(value.get(place), place), origin)
    history = _history(value, columns.history)
    history.append(Message("user", _question(value, shape)))
    system = optional_text(value.get(columns.system), columns.system) if columns.system else ""
    prompt = with_system(history, system) if system else history
    tools = read_tools(value.get(columns.tools), columns.tools) if columns.tools else ()
    where = columns.response or "output"
    answer = value.get(where)
    if isinstance(answer, list):
        return _two_answers(answer, where, Conversation(tuple(prompt), tools), origin)
    if paired:
        return pair(value, shape, Conversation(tuple(prompt), tools), origin, columns.prompt or "instruction")
    if answer is None:
        raise RowError(where, "the answer is missing", Conversation(tuple(prompt), tools))
    messages = (*prompt, Message("assistant", text_at(answer, where, what="answer")))
    return finish(value, shape, Conversation(messages, tools), origin, where)


def _question(value: dict[str, Any], shape: Shape) -> str:
    columns = shape.columns
    instruction = optional_text(value.get(columns.prompt), columns.prompt) if columns.prompt else ""
    query = optional_text(value.get(columns.query), columns.query) if columns.query else ""
    question = f"{instruction}{shape.separator}{query}" if instruction and query else instruction or query
    if not question or question.isspace():
        names = [name for name in (columns.prompt, columns.query) if name]
        missing = not any(name in value for name in names)
        raise RowError(names[0] if names else "", "the prompt is missing" if missing else "the prompt is empty")
    return question


def _history(value: dict[str, Any], column: str | None) -> list[Message]:
    rounds = value.get(column) if column else None
    if not rounds or not column:
        return []
    messages = []
    for index, turn in enumerate(list_at(rounds, column)):
        place = f"{column}[{index}]"
        if not isinstance(turn, (list, tuple)) or len(turn) != 2:
            count = f"a list of {len(turn)}" if isinstance(turn, list) else kind_of(turn)
            raise RowError(place, f"a past turn is [question, answer], this is {count}")
        messages.append(Message("user", text_at(turn[0], f"{place}[0]", what="question")))
        messages.append(Message("assistant", text_at(turn[1], f"{place}[1]", what="answer")))
    return messages


def _two_answers(answers: list[Any], where: str, prompt: Conversation, origin: Origin) -> Preference:
    if len(answers) != 2:
        raise RowError(where, f"a pair is [better, worse], this is a list of {len(answers)}")
    better = Message("assistant", text_at(answers[0], f"{where}[0]", what="answer"))
    worse = Message("assistant", text_at(answers[1], f"{where}[1]", what="answer"))
    return Preference(prompt_of(prompt.messages, prompt.tools, where), better, worse, None, origin)


def write(row: Row) -> dict[str, Any]:
    """Write one row: questions and answers in turn, text alone."""
    match row:
        case Example(conversation):
            prompt, answer = split_answer(conversation)
            return {**write_prompt(prompt, conversation.tools), "output": plain(answer)}
        case UnpairedPreference(conversation, desirable):
            prompt, answer = split_answer(conversation)
            return {
                **write_prompt(prompt, conversation.tools),
                "output": plain(answer),
                "kto_tag": desirable,
            }
        case Preference(start, chosen, rejected, margin):
            value = {
                **write_prompt(start.messages, start.tools),
                "chosen": plain(chosen),
                "rejected": plain(rejected),
            }
            return value if margin is None else {**value, "margin": margin}
        case Document():
            raise CannotHold("plain text has no question and answer")


def write_pair(row: Row) -> dict[str, Any]:
    """Write a preference as ChatGLM-Efficient-Tuning reads it: ``"output": [better, worse]``."""
    if not isinstance(row, Preference):
        return write(row)
    prompt = write_prompt(row.prompt.messages, row.prompt.tools)
    return {**prompt, "output": [plain(row.chosen), plain(row.rejected)]}


def write_prompt(messages: tuple[Message, ...], tools: tuple[str, ...]) -> dict[str, Any]:
    """Columns instruction, input, system and history of what comes before the answer."""
    system = messages[0].content if messages and messages[0].role == "system" else None
    turns = messages if system is None else messages[1:]
    wanted = ["user", "assistant"] * (len(turns) // 2) + ["user"]
    if [turn.role for turn in turns] != wanted:
        raise CannotHold("turns other than question and answer by turns (tools, two questions in a row)")
    history = [[turns[i].content, plain(turns[i + 1])] for i in range(0, len(turns) - 1, 2)]
    value: dict[str, Any] = {"instruction": turns[-1].content, "input": ""}
    if system is not None:
        value["system"] = system
    if history:
        value["history"] = history
    if tools:
        value["tools"] = "[" + ", ".join(tools) + "]"
    return value


def plain(message: Message) -> str:
    """The text of an answer that calls no tools."""
    if message.tool_calls:
        raise CannotHold("tool calls")
    return message.content


COLUMNS = Columns(
    history="history",
    messages=None,
    system="system",
    tools="tools",
    chosen="chosen",
    rejected="rejected",
    kto_tag="kto_tag",
)
FORMAT = Format(read, write, COLUMNS, keys=frozenset({"margin"}))
PAIR = Format(read, write_pair, COLUMNS, keys=frozenset({"margin"}))
