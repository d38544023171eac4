"""How sources of rewards are written.

- ``length(max=80)``, a rule by name, with its arguments
- ``path/to/file.py:function`` or ``package.module:function``, with arguments or without
- ``https://host/score``, a server

or, wherever arguments are awkward to write as text, as a mapping: ``{regex: {pattern: "[0-9]+, ok"}}``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from danlu.core.errors import ConfigError

URL = re.compile(r"https?://", re.IGNORECASE)
NAME = re.compile(r"(?P<source>[A-Za-z_][\w-]*)(?:\((?P<arguments>.*)\))?", re.DOTALL)
FUNCTION = re.compile(r"(?P<source>.+?:[^\W\d]\w*)(?:\((?P<arguments>.*)\))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """One source as it was asked for.

    Attributes:
        source: a name, ``file.py:function``, ``module:function`` or a URL.
        arguments: by name.
    """

    source: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """A short name for the log."""
        if URL.match(self.source):
            return "server"
        return self.source.rpartition(":")[2]


def split_sources(value: Any) -> Any:
    """``"a, b(x=1, y=2)"`` → ``["a", "b(x=1, y=2)"]``: commas inside brackets and quotes do not separate.

    A mapping becomes a list of mappings of one entry each; None an empty list.
    """
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [{key: item} for key, item in value.items()]
    if not isinstance(value, str):
        return value
    parts, depth, quote, start = [], 0, "", 0
    for place, character in enumerate(value):
        if quote:
            quote = "" if character == quote and value[place - 1] != "\\" else quote
        elif character in "'\"":
            quote = character
        elif character in "([{)]}":
            depth += 1 if character in "([{" else -1
        elif character == "," and depth <= 0:
            parts.append(value[start:place])
            start = place + 1
    return [part.strip() for part in (*parts, value[start:]) if part.strip()]


def parse_source(entry: str | Mapping[str, Any]) -> RewardSpec:
    """Read one source.

    Raises:
        ConfigError: when it is none, or its arguments cannot be read.
    """
    if isinstance(entry, Mapping):
        if len(entry) != 1:
            raise ConfigError("a reward is one name with its arguments", where=f"reward_funcs:{dict(entry)}")
        ((source, arguments),) = entry.items()
        if arguments is not None and not isinstance(arguments, Mapping):
            raise ConfigError(
                f"the arguments of a reward are a mapping, not {arguments!r}", where=f"reward_funcs:{source}"
            )
        return RewardSpec(str(source), {str(key): item for key, item in (arguments or {}).items()})
    entry = entry.strip()
    if URL.match(entry):
        return RewardSpec(entry)
    found = NAME.fullmatch(entry) or FUNCTION.fullmatch(entry)
    if found is None:
        raise ConfigError(
            "this is no reward",
            where=f"reward_funcs:{entry}",
            hint="Write a name, path/to/file.py:function, package.module:function, or the URL of a server.",
        )
    return RewardSpec(found["source"], _arguments(found["arguments"] or "", entry))


def _arguments(text: str, entry: str) -> dict[str, Any]:
    """``a=1, b=text`` as a mapping; a bare word is text, as in YAML."""
    try:
        call = ast.parse(f"_({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(word.arg is None for word in call.keywords):
            raise ValueError
        return {str(word.arg): _value(word.value) for word in call.keywords}
    except (ValueError, SyntaxError) as error:
        raise ConfigError(
            f"the arguments ({text}) cannot be read",
            where=f"reward_funcs:{entry}",
            hint="They are written name=value, with quotes around text; or as a mapping: {name: {argument: value}}.",
        ) from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "null": None}.get(node.id, node.id)
    return ast.literal_eval(node)
