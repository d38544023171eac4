"""Configurations: YAML files, ``key=value`` overrides, groups of options, and errors that help.

A configuration is a pydantic model whose fields are *groups* (each an :class:`Options` of at most a dozen
fields). Field names are unique across groups, so a key may be written flat (``learning_rate: 1e-4``) or
inside its group (``optim: {learning_rate: 1e-4}``, ``optim.learning_rate=1e-4``): both mean the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from danlu.core.errors import ConfigError, did_you_mean


class Options(BaseModel):
    """One group of options. Unknown keys are refused, values are checked, instances are frozen."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        protected_namespaces=(),
        coerce_numbers_to_str=True,  # run_name=7 and model_revision=2024 are text
    )


OptionsT = TypeVar("OptionsT", bound=Options)


def split_words(value: Any) -> Any:
    """``"a, b"`` or ``["a", "b"]`` → ``["a", "b"]``; None → ``[]``."""
    if value is None:
        return []
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return value


Words = Annotated[tuple[str, ...], BeforeValidator(split_words)]
"""A list of words, which may be written with commas."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML (or JSON) mapping.

    Raises:
        ConfigError: when the file is missing, is not UTF-8, is not YAML, or is not a mapping; with the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError("there is no such file", where=str(path)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"it cannot be read ({error})", where=str(path)) from error
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "a syntax error"
        raise ConfigError(f"it is not valid YAML: {problem}", where=where) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(
            f"a configuration is a mapping of keys to values, this is a {type(value).__name__}",
            where=str(path),
        )
    return {str(key): item for key, item in value.items()}


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """Turn ``["a.b=1", "c=[x, y]"]`` into ``{"a.b": 1, "c": ["x", "y"]}``; values are read as YAML.

    Raises:
        ConfigError: when a word has no ``=`` or its value is not YAML.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"{word!r} is not of the form key=value", where="command line")
        try:
            values[key.strip()] = yaml.safe_load(text) if text else ""
        except yaml.YAMLError as error:
            raise ConfigError(f"the value {text!r} cannot be read", where=f"command line:{key}") from error
    return values


def build(
    model: type[OptionsT],
    values: Mapping[str, Any],
    *,
    where: str,
    places: Mapping[str, str] | None = None,
) -> OptionsT:
    """Build a configuration from flat and grouped values.

    Args:
        model: an :class:`Options` whose fields are groups or plain values.
        values: keys as written: a field, a group with a mapping, ``group.field``, or the bare name of a
            group's field.
        where: what to name in errors (the file, or "command line").
        places: the place of single keys, where they come from different sources.

    Raises:
        ConfigError: for an unknown key (with the nearest names), a wrong type, or a key given twice.
    """
    homes = field_homes(model)
    tree: dict[str, Any] = {}
    written: dict[tuple[str, ...], str] = {}
    for key, value in values.items():
        place = (places or {}).get(key, where)
        for path, leaf in _leaves(model, key, value, homes, place):
            _store(tree, path, leaf, f"{place}:{key}")
            written[path] = key if key.endswith(path[-1]) else ".".join(path)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, where, places or {}, written) from error


def field_homes(model: type[Options]) -> dict[str, tuple[str, ...]]:
    """Every field that can be set, by bare name: ``name → path`` (the group first)."""
    homes: dict[str, tuple[str, ...]] = {}
    for name, field in model.model_fields.items():
        group = _group(field.annotation)
        if group is None:
            homes[name] = (name,)
            continue
        for inner in group.model_fields:
            if inner in homes:
                raise TypeError(f"{model.__name__} has two fields named {inner}")
            homes[inner] = (name, inner)
    return homes


def _group(annotation: Any) -> type[Options] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, Options) else None


def _leaves(
    model: type[Options], key: str, value: Any, homes: Mapping[str, tuple[str, ...]], place: str
) -> Iterable[tuple[tuple[str, ...], Any]]:
    group_name, dot, inner = key.partition(".")
    group_field = model.model_fields.get(group_name)
    group = _group(group_field.annotation) if group_field else None
    if group and dot:
        if inner not in group.model_fields:
            raise _unknown(inner, group.model_fields, f"{place}:{key}", f"group {group_name}")
        yield (group_name, inner), value
    elif group and isinstance(value, Mapping):
        for name, item in value.items():
            if name not in group.model_fields:
                raise _unknown(str(name), group.model_fields, f"{place}:{key}.{name}", f"group {group_name}")
            yield (group_name, str(name)), item
    elif key in homes:
        yield homes[key], value
    elif group:
        raise ConfigError(f"{group_name} is a group of options and needs a mapping", where=f"{place}:{key}")
    else:
        raise _unknown(key, [*homes, *model.model_fields], f"{place}:{key}", "this configuration")


def _unknown(key: str, known: Iterable[str], where: str, scope: str) -> ConfigError:
    hint = did_you_mean(key, known) or "See docs/en/configuration.md for every key."
    return ConfigError(f"{scope} has no key {key!r}", where=where, hint=hint)


def _store(tree: dict[str, Any], path: tuple[str, ...], value: Any, where: str) -> None:
    *groups, last = path
    for name in groups:
        tree = tree.setdefault(name, {})
    if last in tree:
        raise ConfigError(f"{last} is given twice", where=where, hint="Keep one of them.")
    tree[last] = value


_WORDS = {
    "greater_than": "it has to be above {gt:g}",
    "greater_than_equal": "it has to be at least {ge:g}",
    "less_than": "it has to be below {lt:g}",
    "less_than_equal": "it has to be at most {le:g}",
    "int_parsing": "a whole number is expected",
    "int_type": "a whole number is expected",
    "int_from_float": "a whole number is expected",
    "float_parsing": "a number is expected",
    "float_type": "a number is expected",
    "bool_parsing": "true or false is expected",
    "bool_type": "true or false is expected",
    "literal_error": "it has to be {expected}",
}
"""What is said for pydantic's kinds of errors; other messages are shown as they are."""


def _explain(
    error: ValidationError, where: str, places: Mapping[str, str], written: Mapping[tuple[str, ...], str]
) -> ConfigError:
    """The first error in a line; ``written`` has the key that the user wrote for each path."""
    first = error.errors(include_url=False)[0]
    keys = tuple(str(part) for part in first["loc"])
    path = ".".join(keys)
    place = next((places[key] for key in (path, *keys) if key in places), where)
    known = next((count for count in range(len(keys), 0, -1) if keys[:count] in written), 0)
    name = ".".join((written[keys[:known]], *keys[known:])) if known else path
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in _WORDS:
        message = _WORDS[first["type"]].format(**first.get("ctx", {}))
    given = first.get("input")
    shown = "" if isinstance(given, (dict, Options)) else f" (got {given!r})"
    return ConfigError(f"{message}{shown}", where=f"{place}:{name}" if name else place)
