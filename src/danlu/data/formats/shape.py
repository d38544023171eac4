"""How the rows of a source are to be read: format, names of columns, names of roles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from danlu.data.schema import Origin, Row


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns; None where the source has no such column.

    The defaults are those of a ``dataset_info.json`` entry that names no columns.
    """

    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    messages: str | None = "conversations"
    system: str | None = None
    tools: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    kto_tag: str | None = None

    def named(self) -> frozenset[str]:
        """Every column name in use."""
        return frozenset(name for item in fields(self) if (name := getattr(self, item.name)))


NO_COLUMNS = Columns(prompt=None, query=None, response=None, messages=None)


@dataclass(frozen=True, slots=True)
class Tags:
    """Keys of a message and names of the roles. Common other names are understood as well."""

    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    observation_tag: str = "observation"
    function_tag: str = "function_call"
    system_tag: str = "system"

    def roles(self) -> dict[str, str]:
        """Role name → ``system | user | assistant | tool | call``."""
        own = {
            self.user_tag: "user",
            self.assistant_tag: "assistant",
            self.observation_tag: "tool",
            self.function_tag: "call",
            self.system_tag: "system",
        }
        return {**ROLES, **own}


ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "function_call": "call",
    "tool_call": "call",
}

MEDIA = {"images": "pictures", "videos": "videos", "audios": "audio"}

OPENAI_TAGS = Tags("role", "content", "user", "assistant", "tool", "tool_call", "system")


@dataclass(frozen=True, slots=True)
class Shape:
    """How to read a source.

    Attributes:
        format: name in :data:`danlu.data.formats.FORMATS`.
        columns: where things are in a row.
        tags: where things are in a message.
        ranking: rows are pairs of a better and a worse answer.
        separator: between instruction and input ("" in ChatGLM-Efficient-Tuning).
        roles: role names of the tags, derived.
        media: columns of things that are not text, and what they are called, derived.
    """

    format: str = "alpaca"
    columns: Columns = Columns()
    tags: Tags = Tags()
    ranking: bool = False
    separator: str = "\n"
    roles: dict[str, str] = field(init=False, repr=False, compare=False, default_factory=dict)
    media: dict[str, str] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.roles.update(self.tags.roles())
        self.media.update({getattr(self.columns, name) or name: what for name, what in MEDIA.items()})


@dataclass(frozen=True, slots=True)
class Format:
    """One layout of rows.

    Attributes:
        read: a raw row, its shape and its place → a row; raises ``RowError``.
        write: a row → a raw row; raises ``CannotHold``.
        columns: every column that the layout may have, under its usual name.
        tags: the usual names in messages.
        keys: further keys the reader looks at, beside the columns.
    """

    read: Callable[[dict[str, Any], Shape, Origin], Row]
    write: Callable[[Row], dict[str, Any]]
    columns: Columns
    tags: Tags = OPENAI_TAGS
    keys: frozenset[str] = frozenset()
