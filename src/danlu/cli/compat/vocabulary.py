"""Every name that a command may use, and what kind of value it takes."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from danlu.cli.compat.tables import Table
from danlu.core.config import Options, field_homes
from danlu.core.errors import ConfigError, did_you_mean

Kind = Literal["bool", "integer", "number", "text", "list", "mapping", "any"]

TRUE = frozenset({"true", "1", "yes", "y", "on", "t"})
FALSE = frozenset({"false", "0", "no", "n", "off", "f"})


@dataclass(frozen=True, slots=True)
class Name:
    """One name: its kind, and whether it may be null."""

    kind: Kind
    nullable: bool = True


class Vocabulary:
    """The names of a configuration and of the tables of old tools.

    Args:
        model: the configuration that values end up in.
        tables: old tools' tables, the first has the first word.
    """

    def __init__(self, model: type[Options], tables: Sequence[Table]) -> None:
        self.model = model
        self.tables = tuple(tables)
        self.homes = field_homes(model)
        self.names: dict[str, Name] = {
            bare: Name(*describe(_annotation(model, path))) for bare, path in self.homes.items()
        }
        for old in tables:
            for key, kind in old.passed.items():
                self.names.setdefault(key, Name(_checked(kind)))
            for key, answer in old.answered.items():
                self.names.setdefault(key, Name(_kind_of_value(answer.default)))
        for old in tables:
            for key, rename in old.renamed.items():
                target = self.names.get(rename.to.removeprefix("trainer."), Name("any"))
                kind = _checked(rename.kind) if rename.kind else "any"
                self.names.setdefault(key, Name(kind) if rename.convert else target)

    def groups(self) -> Mapping[str, type[Options]]:
        """The groups of the configuration by name."""
        found = {name: _group(field.annotation) for name, field in self.model.model_fields.items()}
        return {name: group for name, group in found.items() if group}

    def full_name(self, written: str, place: str) -> tuple[str, bool]:
        """The name that ``written`` is, or is a unique beginning of; and whether it was abbreviated.

        Raises:
            ConfigError: when nothing, or more than one thing, begins so.
        """
        if written in self.names:
            return written, False
        starts = [name for name in self.names if name.startswith(written)] if written else []
        own = [name for name in starts if name in self.homes]
        if len(starts) == 1 or len(own) == 1:
            return (own or starts)[0], True
        if starts:
            raise ConfigError(
                f"--{written} is short for more than one option",
                where=place,
                hint=f"Write one of: {', '.join(sorted(starts)[:6])}.",
            )
        raise ConfigError(f"there is no option {written!r}", where=place, hint=self.nearest(written))

    def nearest(self, word: str) -> str:
        """A hint for an unknown name."""
        own = did_you_mean(word, self.homes)  # what has an effect comes before what is only known
        return own or did_you_mean(word, self.names) or "See docs/en/configuration.md for every key."


def truth(text: str, place: str) -> bool:
    """The truth value that ``text`` spells.

    Raises:
        ConfigError: when it spells none.
    """
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise ConfigError(f"{text!r} is neither true nor false", where=place)


def describe(annotation: Any) -> tuple[Kind, bool]:
    """The kind of a field's annotation, and whether it allows None."""
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    kinds = [_kind(option) for option in options if option is not type(None)]
    nullable = type(None) in options
    return (kinds[0] if len(set(kinds)) == 1 else "any"), nullable


def _kind(annotation: Any) -> Kind:
    origin = get_origin(annotation) or annotation
    if origin is tuple:
        return "list"
    if origin is dict:
        return "mapping"
    simple: dict[Any, Kind] = {bool: "bool", int: "integer", float: "number"}
    if origin in simple:
        return simple[origin]
    inner = [argument for argument in get_args(annotation) if isinstance(argument, type)]
    return simple.get(inner[0], "text") if inner else "text"


def _kind_of_value(value: Any) -> Kind:
    return "bool" if isinstance(value, bool) else "any"


def _checked(kind: str) -> Kind:
    if kind not in get_args(Kind):
        raise TypeError(f"the compat tables know no kind {kind!r}")
    return kind  # type: ignore[return-value]


def _annotation(model: type[Options], path: tuple[str, ...]) -> Any:
    field = model.model_fields[path[0]]
    if len(path) == 1:
        return field.annotation
    group = _group(field.annotation)
    return group.model_fields[path[1]].annotation if group else field.annotation


def _group(annotation: Any) -> type[Options] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, Options) else None
