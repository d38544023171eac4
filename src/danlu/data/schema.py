"""The words of the data room: messages, conversations, and what a row can be.

Every format reads into these and every format writes from them. They are frozen and hashable, so a row
can be compared, counted and hashed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the assistant makes: the function's name and its arguments as JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        role: who speaks; ``tool`` is the result of a tool call.
        content: the text; may be empty only for an assistant turn that calls tools.
        tool_calls: calls made in this (assistant) turn.
        train: whether this turn's tokens are trained; None leaves it to the options
            (assistant turns are trained, all others are not).
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    train: bool | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order, with the JSON schemas of the tools the assistant may call (each as JSON text)."""

    messages: tuple[Message, ...]
    tools: tuple[str, ...] = ()

    @property
    def system(self) -> str | None:
        """The system prompt, if the conversation begins with one."""
        first = self.messages[0] if self.messages else None
        return first.content if first is not None and first.role == "system" else None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row came from: file, line of the file (1-based, 0 if lines mean nothing), row (0-based)."""

    path: str
    line: int
    row: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.line else f"{self.path}:row {self.row}"


NOWHERE = Origin("", 0, 0)


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation with trainable turns (stages sft, and prompts for ppo)."""

    conversation: Conversation
    origin: Origin = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Preference:
    """One prompt with a better and a worse answer (stages rm, dpo)."""

    prompt: Conversation
    chosen: Message
    rejected: Message
    margin: float | None = None
    origin: Origin = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class UnpairedPreference:
    """A conversation whose last answer is wanted or not (stage kto)."""

    conversation: Conversation
    desirable: bool
    origin: Origin = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text (stage pt)."""

    text: str
    origin: Origin = field(default=NOWHERE, compare=False)


Row: TypeAlias = Example | Preference | UnpairedPreference | Document


def row_key(row: Row) -> int:
    """A 64-bit content hash of a row, whatever file or format it came from.

    Used to find rows of an evaluation set that were trained on, duplicates, and changes between versions.
    """
    digest = hashlib.blake2b(_canonical(row).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def _canonical(row: Row) -> str:
    match row:
        case Example(conversation):
            parts: list[object] = ["example", *_turns(conversation)]
        case Preference(prompt, chosen, rejected):
            parts = ["preference", *_turns(prompt), _turn(chosen), _turn(rejected)]
        case UnpairedPreference(conversation, desirable):
            parts = ["unpaired", *_turns(conversation), desirable]
        case Document(text):
            parts = ["document", text]
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))


def _turns(conversation: Conversation) -> list[object]:
    return [list(conversation.tools), *map(_turn, conversation.messages)]


def _turn(message: Message) -> list[object]:
    return [message.role, message.content, [[call.name, call.arguments] for call in message.tool_calls]]
