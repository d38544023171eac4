"""Chat templates as text: the Jinja environment that model folders expect, and tools for models without them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from danlu.core.errors import ModelError
from danlu.data.schema import Conversation, Message, ToolCall


class TemplateError(ModelError):
    """A conversation cannot be rendered by a chat template, or not in a way that can be trained on."""


ONE_ANSWER = "{#- danlu: one answer a sequence -#}"
"""A remark in a chat template: it writes an answer otherwise once turns follow, because the model was trained so."""


class UnstableTemplateError(TemplateError):
    """A chat template writes earlier turns differently once later turns follow."""

    def __init__(self) -> None:
        super().__init__(
            "the model's chat template writes earlier turns differently once later turns follow, so the answers "
            "of such a conversation cannot all be trained in one sequence",
            hint="Use unstable_template=split (a sequence for each answer) or mask_history=true (last answer only).",
        )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


@cache
def compile_template(source: str) -> jinja2.Template:
    """Compile a ``chat_template`` with the functions and whitespace rules of the transformers convention.

    Raises:
        TemplateError: when it is not valid Jinja.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, "jinja2.ext.do"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the chat template is not valid Jinja: {error}", where=f"line {error.lineno}") from error


def render(
    template: jinja2.Template,
    messages: Sequence[Message],
    tools: Sequence[str],
    variables: Mapping[str, Any],
    *,
    generation_prompt: bool,
) -> str:
    """The text of a conversation, with or without the header of the answer to come.

    Raises:
        TemplateError: when the template refuses the conversation; with the template's own words.
    """
    try:
        return template.render(
            messages=[_as_dict(message) for message in messages],
            tools=[tool_object(tool) for tool in tools] or None,
            add_generation_prompt=generation_prompt,
            **variables,
        )
    except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
        raise TemplateError(f"the model's chat template refuses this conversation: {error}") from error


def _as_dict(message: Message) -> dict[str, Any]:
    if not message.tool_calls:
        return {"role": message.role, "content": message.content}
    calls = [
        {"type": "function", "function": {"name": call.name, "arguments": _arguments(call)}}
        for call in message.tool_calls
    ]
    return {"role": message.role, "content": message.content, "tool_calls": calls}


def without_escapes(text: str) -> str:
    """JSON text with its characters written out, as a template will see them; other text as it is."""
    if "\\" not in text:
        return text
    try:
        return _to_json(json.loads(text))
    except ValueError:
        return text


def _arguments(call: ToolCall) -> Any:
    try:
        return json.loads(call.arguments)
    except ValueError:
        return call.arguments


def tool_object(tool: str) -> Any:
    """A tool's JSON schema as an object ``{"type": "function", "function": …}``."""
    schema = json.loads(tool)
    wrapped = isinstance(schema, dict) and "function" in schema
    return schema if wrapped else {"type": "function", "function": schema}


TOOLS_HEADER = (
    "You can call these functions. To call one, answer with a JSON object holding its name and arguments "
    "between <tool_call> and </tool_call>.\n<tools>\n{tools}\n</tools>"
)


def inline_tools(conversation: Conversation) -> Conversation:
    """The same conversation with tools, calls and results written into the text.

    For models whose chat template knows no tools: what the template would leave out silently is put where
    it cannot: schemas into the system prompt, calls into the answer, results into a user turn.
    """
    messages = [_inline(message) for message in conversation.messages]
    if conversation.tools:
        header = TOOLS_HEADER.format(tools="\n".join(conversation.tools))
        if messages and messages[0].role == "system":
            messages[0] = replace(messages[0], content=f"{messages[0].content}\n\n{header}")
        else:
            messages.insert(0, Message("system", header))
    return Conversation(tuple(messages))


def _inline(message: Message) -> Message:
    if message.role == "tool":
        return replace(message, role="user", content=f"<tool_response>\n{message.content}\n</tool_response>")
    if message.tool_calls:
        calls = [
            f"<tool_call>\n{_to_json({'name': call.name, 'arguments': _arguments(call)})}\n</tool_call>"
            for call in message.tool_calls
        ]
        return replace(
            message, content="\n".join([message.content, *calls] if message.content else calls), tool_calls=()
        )
    return message
