"""Messages of every layout: roles, contents, tool calls, what is trained.

What is refused here could not be rendered by any template: empty turns, unknown roles, wrong types, pictures,
and a conversation that does not end with an answer. A conversation that an assistant begins, or in which
somebody speaks twice in a row, is kept: many templates render it, and one that cannot says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from danlu.data.formats.shape import OPENAI_TAGS, Shape, Tags
from danlu.data.rows import RowError, kind_of
from danlu.data.schema import Conversation, Message, ToolCall

_OPENAI_ROLES = OPENAI_TAGS.roles()
_THOUGHT = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)
_LOSS_KEYS = ("loss", "loss_weight")


def dump(value: Any) -> str:
    """JSON text in the one style used for tools and arguments."""
    return json.dumps(value, ensure_ascii=False)


def text_at(value: Any, field: str, *, what: str = "text") -> str:
    """A text that must be there and must not be empty.

    Raises:
        RowError: otherwise.
    """
    if not isinstance(value, str):
        if value is None:
            raise RowError(field, f"the {what} is missing")
        raise RowError(field, f"text is expected, this is {kind_of(value)}")
    if not value or value.isspace():
        raise RowError(field, f"the {what} is empty")
    return value


def optional_text(value: Any, field: str) -> str:
    """A text that may be absent, null or empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(field, f"text is expected, this is {kind_of(value)}")
    return value


def list_at(value: Any, field: str) -> list[Any]:
    """A list, also when it is written as JSON text (as in a table's cell)."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        value = parsed(value, field)
    if not isinstance(value, list):
        raise RowError(field, "it is missing" if value is None else f"a list is expected, this is {kind_of(value)}")
    return value


def parsed(text: str, field: str) -> Any:
    """JSON text as a value."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", str(error))
        raise RowError(field, f"it is not valid JSON: {reason[:1].lower()}{reason[1:]}") from error


def refuse_media(value: dict[str, Any], shape: Shape) -> None:
    """Refuse rows with pictures, videos or audio: trained on their text alone they would teach nonsense."""
    if shape.media.keys().isdisjoint(value):
        return
    for name, what in shape.media.items():
        if value.get(name):
            raise RowError(name, f"rows with {what} are not supported yet, only text")


def read_messages(
    value: Any, field: str, tags: Tags = OPENAI_TAGS, roles: dict[str, str] | None = None
) -> list[Message]:
    """The messages of a list, each checked by itself."""
    roles = _OPENAI_ROLES if roles is None else roles
    messages = []
    for index, item in enumerate(list_at(value, field)):
        message = read_message(item, f"{field}[{index}]", tags, roles)
        if message is not None:
            messages.append(message)
    return messages


def read_message(
    value: Any, field: str, tags: Tags = OPENAI_TAGS, roles: dict[str, str] | None = None
) -> Message | None:
    """One message; None for an empty system prompt, which is the same as none."""
    if not isinstance(value, dict):
        raise RowError(field, f"a message is an object, this is {kind_of(value)}")
    role_key, content_key = _keys(value, tags)
    name = value.get(role_key)
    role = (_OPENAI_ROLES if roles is None else roles).get(name) if isinstance(name, str) else None
    if role is None:
        raise RowError(f"{field}.{role_key}", _unknown_role(name))
    train = _trained(value, field)
    place = f"{field}.{content_key}"
    content, calls = _content(value.get(content_key), place)
    if role == "call":
        thought, calls = _called(content, place)
        return Message("assistant", thought, calls, train)
    if value.get("tool_calls"):
        calls += read_calls(value["tool_calls"], f"{field}.tool_calls")
    elif value.get("function_call"):
        calls += read_calls(value["function_call"], f"{field}.function_call")
    if calls and role != "assistant":
        raise RowError(field, f"a {role} message cannot call tools")
    if role == "system" and not content.strip():
        return None
    if not calls:
        text_at(content, place, what="answer" if role == "assistant" else "content")
    return Message(role, content, calls, train)  # type: ignore[arg-type]


def _keys(value: dict[str, Any], tags: Tags) -> tuple[str, str]:
    if tags.role_tag in value:
        return tags.role_tag, tags.content_tag
    for role_key, content_key in (("role", "content"), ("from", "value")):
        if role_key in value:
            return role_key, content_key
    return tags.role_tag, tags.content_tag


def _unknown_role(name: Any) -> str:
    if name is None:
        return "the role is missing"
    shown = repr(name) if isinstance(name, str) else kind_of(name)
    return f"unknown role {shown}; roles can be named under tags in dataset_info.json"


def _trained(value: dict[str, Any], field: str) -> bool | None:
    for key in _LOSS_KEYS:
        weight = value.get(key)
        if weight is None:
            continue
        if weight not in (0, 1):
            shown = weight if isinstance(weight, (int, float)) else kind_of(weight)
            raise RowError(f"{field}.{key}", f"a turn is trained (1, true) or not (0, false), this is {shown}")
        return bool(weight)
    return None


def _content(value: Any, field: str) -> tuple[str, tuple[ToolCall, ...]]:
    """Text, or a list of parts of type text (and tool_call in content blocks)."""
    if value is None or isinstance(value, str):
        return value or "", ()
    if not isinstance(value, list):
        raise RowError(field, f"text or a list of parts is expected, this is {kind_of(value)}")
    texts: list[str] = []
    calls: tuple[ToolCall, ...] = ()
    for index, part in enumerate(value):
        place = f"{field}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(optional_text(part.get("text", part.get("value")), place))
        elif kind == "tool_call":
            calls += read_calls(part.get("value"), f"{place}.value")
        else:
            shown = repr(kind) if isinstance(kind, str) else kind_of(part)
            raise RowError(place, f"parts of type text are read, this is {shown}")
    return "".join(texts), calls


def _called(content: str, field: str) -> tuple[str, tuple[ToolCall, ...]]:
    """The calls of a function_call turn, with a thought that may stand before them."""
    match = _THOUGHT.match(content)
    thought = match.group() if match else ""
    return thought, read_calls(text_at(content[len(thought) :], field, what="call"), field)


def is_thought(content: str) -> bool:
    """Whether a text is a thought and nothing else, so that a call can follow it in one turn."""
    match = _THOUGHT.match(content)
    return not content or (match is not None and match.end() == len(content))


def read_calls(value: Any, field: str) -> tuple[ToolCall, ...]:
    """Calls as objects or JSON text: one or a list; ``{"name", "arguments"}`` or ``{"function": {…}}``."""
    if isinstance(value, str):
        value = parsed(value, field)
    if not isinstance(value, list):
        return (_call(value, field),)
    if not value:
        raise RowError(field, "the list of calls is empty")
    return tuple(_call(item, f"{field}[{index}]") for index, item in enumerate(value))


def _call(value: Any, field: str) -> ToolCall:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value, field = value["function"], f"{field}.function"
    if not isinstance(value, dict):
        raise RowError(field, f"a call is an object with name and arguments, this is {kind_of(value)}")
    name = text_at(value.get("name"), f"{field}.name", what="name")
    arguments = value.get("arguments", {})
    if isinstance(arguments, str):
        if arguments.strip():
            parsed(arguments, f"{field}.arguments")
        return ToolCall(name, arguments)
    return ToolCall(name, dump({} if arguments is None else arguments))


def write_call(call: ToolCall) -> dict[str, Any]:
    """A call whose arguments come back letter for letter: an object where that is enough, else text."""
    try:
        arguments = json.loads(call.arguments)
        exact = dump(arguments) == call.arguments and not isinstance(arguments, str)
    except ValueError:
        exact = False
    return {"name": call.name, "arguments": arguments if exact else call.arguments}


def read_tools(value: Any, field: str) -> tuple[str, ...]:
    """Descriptions of tools: a list of objects, or its JSON text; each becomes JSON text."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    if isinstance(value, str):
        value = parsed(value, field)
    if isinstance(value, dict):
        value = [value]
    tools = []
    for index, tool in enumerate(list_at(value, field)):
        described = parsed(tool, f"{field}[{index}]") if isinstance(tool, str) else tool
        if not isinstance(described, dict):
            raise RowError(f"{field}[{index}]", f"a tool is an object, this is {kind_of(described)}")
        tools.append(dump(described))
    return tuple(tools)


def with_system(messages: Sequence[Message], system: str) -> tuple[Message, ...]:
    """Messages with a system prompt in front, unless they bring their own or it is empty."""
    if not system.strip() or (messages and messages[0].role == "system"):
        return tuple(messages)
    return (Message("system", system), *messages)


def answered(conversation: Conversation, field: str) -> Conversation:
    """The conversation, which must end with an answer.

    Raises:
        RowError: when it is empty or its last turn waits for an answer.
    """
    messages = conversation.messages
    if not messages:
        raise RowError(field, "there is no message")
    if messages[-1].role != "assistant":
        last = messages[-1].role
        asks = conversation if last in ("user", "tool") else None
        raise RowError(f"{field}[{len(messages) - 1}]", f"the last turn ({last}) has no answer", asks)
    return conversation


def prompt_of(messages: Sequence[Message], tools: tuple[str, ...], field: str) -> Conversation:
    """A conversation that waits for an answer.

    Raises:
        RowError: when there is nothing to answer.
    """
    if not any(message.role in ("user", "tool") for message in messages):
        raise RowError(field, "there is no prompt")
    return Conversation(tuple(messages), tools)
