"""A configuration as YAML that a person reads and danlu reads back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from danlu.core.config import Options

Comment = Callable[[str, str, Any, FieldInfo], str]
"""``(group, name, value, field) → comment``; the group of a top-level field is empty."""

COLUMN = 46
WIDTH = 10_000


def to_yaml(config: Options, comment: Comment | None = None) -> str:
    """Every option with its value, group by group, one line each.

    Args:
        config: the configuration.
        comment: what to say after an option; its description by default.
    """
    say = comment or describe
    parts: list[str] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Options):
            about = (type(value).__doc__ or "").strip().splitlines()[0]
            lines = [f"{name}:".ljust(COLUMN) + f"# {about}"]
            for inner, inner_field in type(value).model_fields.items():
                item = getattr(value, inner)
                lines.append(_line(f"  {inner}", _whole(item, inner_field), say(name, inner, item, inner_field)))
        else:
            lines = [_line(name, value, say("", name, value, field))]
        parts.append("\n".join(lines))
    grouped = any(isinstance(getattr(config, name), Options) for name in type(config).model_fields)
    return ("\n\n" if grouped else "\n").join(parts) + "\n"


def describe(group: str, name: str, value: Any, field: FieldInfo) -> str:
    """The documentation of an option."""
    del group, name, value
    return field.description or ""


class _Dumper(yaml.SafeDumper):
    """Writes text with line ends or control characters in double quotes, so that it stays on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = None if value.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def scalar(value: Any) -> str:
    """One value as YAML on one line."""
    if value is None or isinstance(value, (bool, int)):
        return json.dumps(value)  # the same, and most options are such
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.dump(plain, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=WIDTH, sort_keys=False)
    return text.removesuffix("\n").removesuffix("...").rstrip("\n")


def _whole(value: Any, field: FieldInfo) -> Any:
    """``10.0`` as ``10`` where the option is usually a whole number."""
    whole = isinstance(value, float) and value.is_integer() and type(field.default) is int
    return int(value) if whole else value


def _line(name: str, value: Any, comment: str) -> str:
    text = f"{name}: {scalar(value)}"
    return f"{text.ljust(COLUMN - 1)} # {comment}" if comment else text
