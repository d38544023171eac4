"""Requests as a service reads them, and its answers as the engine protocol has them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from danlu.core.console import warn
from danlu.data.formats.openai import write_message
from danlu.data.rendering import inline_tools, tool_object
from danlu.data.schema import Conversation, Message, ToolCall
from danlu.engine.protocol import Completion, FinishReason, GenerationOptions, Request, request_seed
from danlu.engine.remote.failures import RemoteError, Reply, shown
from danlu.engine.remote.ledger import Usage, guess_tokens
from danlu.engine.text import cut_at_stop

MOST_STOPS = 4
"""Stop texts that OpenAI's protocol takes; further ones are cut off here."""

OPTIONAL = ("temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop", "max_tokens", "stream_options")
"""Words of a body that a service may not know. ``top_k`` and ``repetition_penalty`` are additions of vLLM's."""

UNKNOWN = re.compile(r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed", re.I)


class Dialect:
    """What a service turned out not to accept; shared by all requests, each word is said once."""

    def __init__(self, model: str) -> None:
        self.model = model
        self._refused: set[str] = set()
        self._said: set[str] = set()

    def learn(self, reply: Reply, body: Mapping[str, Any]) -> bool:
        """Whether an answer refuses a word of the body that can be done without, so that asking again makes sense."""
        if reply.status not in (400, 422) or not (UNKNOWN.search(reply.words) or reply.code.startswith("unsupported")):
            return False
        named = str(reply.said.get("param") or "")
        for word in OPTIONAL:
            if word in body and (named == word or (not named and re.search(rf"\b{word}\b", reply.words))):
                self._refused.add(word)
                if word != "max_tokens":
                    self.say(word, f"the service does not accept {word}: it is left out, answers may differ")
                return True
        return False

    def say(self, topic: str, text: str) -> None:
        """Warn of something once."""
        if topic not in self._said:
            self._said.add(topic)
            warn(f"{self.model}: {text}")

    def spoken(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A body without the words that are refused; the longest answer has a newer name."""
        kept = {word: value for word, value in body.items() if word not in self._refused}
        if "max_tokens" in self._refused and "max_tokens" in body:
            kept["max_completion_tokens"] = body["max_tokens"]
        return kept


def body_of(request: Request, dialect: Dialect) -> tuple[str, dict[str, Any]]:
    """The path and the body of a request: conversations to chat completions, texts and token ids to completions."""
    prompt, options = request.prompt, request.options
    body: dict[str, Any] = {"model": dialect.model}
    if isinstance(prompt, Conversation):
        path = "/chat/completions"
        body["messages"] = messages_of(prompt)
        if prompt.tools:
            body["tools"] = [tool_object(tool) for tool in prompt.tools]
    else:
        path = "/completions"
        body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
    if options.num_beams > 1:
        dialect.say("num_beams", "a service searches no beams: the likeliest token is taken")
    return path, dialect.spoken({**body, **_generation(options, request.key)})


def _generation(options: GenerationOptions, key: str) -> dict[str, Any]:
    words: dict[str, Any] = {"max_tokens": options.max_new_tokens, "temperature": 0.0}
    if options.do_sample:
        words |= {"temperature": options.temperature, "seed": request_seed(options.seed, key, bits=31)}
        words |= {"top_p": options.top_p} if options.top_p < 1 else {}
        words |= {"top_k": options.top_k} if options.top_k else {}
    if options.repetition_penalty != 1:
        words["repetition_penalty"] = options.repetition_penalty
    if options.stop:
        words["stop"] = list(options.stop[:MOST_STOPS])
    return words


def repeatable(body: Mapping[str, Any]) -> bool:
    """Whether the same body is meant to get the same answer: the likeliest tokens, or sampled with a seed."""
    return body.get("temperature") == 0 or "seed" in body


def messages_of(conversation: Conversation) -> list[dict[str, Any]]:
    """Messages with the numbers that tie the results of tools to their calls."""
    written, made, answered = [], 0, 0
    for message in conversation.messages:
        value = write_message(replace(message, train=None))
        for call in value.get("tool_calls", ()):
            call["id"], made = f"call_{made}", made + 1
        if message.role == "tool":
            value["tool_call_id"], answered = f"call_{answered}", answered + 1
        written.append(value)
    return written


def text_of(request: Request) -> str:
    """The prompt as text, to guess its tokens from; ids become a letter of four bytes' room each."""
    if isinstance(request.prompt, Conversation):
        sent = [messages_of(request.prompt), list(request.prompt.tools)]
        return json.dumps(sent, ensure_ascii=False)
    return request.prompt if isinstance(request.prompt, str) else "·" * len(request.prompt)


@dataclass(frozen=True, slots=True)
class Answer:
    """The part of a service's answer that is used.

    Attributes:
        text: what it says; calls of tools are written into it as danlu trains them.
        finish: its own word for why it ended.
        usage: tokens.
    """

    text: str
    finish: str
    usage: Usage


def read_answer(value: Any, request: Request, where: str) -> Answer:
    """An answer of either path.

    Raises:
        RemoteError: when it has another shape.
    """
    try:
        choice = value["choices"][0]
        text = _message_text(choice["message"]) if "message" in choice else choice["text"]
        if not isinstance(text, str):
            raise TypeError
    except (KeyError, IndexError, TypeError) as error:
        text = shown(json.dumps(value).encode())
        raise RemoteError(f"the server's answer has not the shape of a completion: {text}", where=where) from error
    return Answer(text, str(choice.get("finish_reason") or "stop"), usage_of(value, text_of(request), text))


def _message_text(message: Mapping[str, Any]) -> str:
    calls = tuple(
        ToolCall(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or ()
    )
    said = Message("assistant", message.get("content") or "", calls)
    return inline_tools(Conversation((said,))).messages[0].content


def usage_of(value: Any, prompt: str, answer: str) -> Usage:
    """The tokens that a service counted, or a guess from the texts."""
    usage = value.get("usage") if isinstance(value, dict) else None
    if isinstance(usage, dict) and isinstance(usage.get("prompt_tokens"), int):
        return Usage(usage["prompt_tokens"], int(usage.get("completion_tokens") or 0))
    return Usage(guess_tokens(prompt), guess_tokens(answer), guessed=True)


def completion_of(answer: Answer, request: Request, dialect: Dialect) -> Completion:
    """An answer as the engine protocol has it. A service does not tell token ids: there are none."""
    if answer.finish == "content_filter":
        dialect.say("content_filter", "the service's content filter ended an answer (others are not said)")
    text, _ = cut_at_stop(answer.text, request.options.stop)
    ended: FinishReason = "length" if answer.finish == "length" else "stop"
    return Completion(request.key, text, (), ended, answer.usage.prompt)
