"""The words of a command line: a configuration file, ``key=value`` words, ``--flags``; in any mixture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from danlu.cli.compat.vocabulary import FALSE, TRUE, Kind, Vocabulary, truth
from danlu.core.config import parse_overrides, read_yaml
from danlu.core.errors import ConfigError, UsageError

COMMAND_LINE = "command line"
SUFFIXES = {".yaml", ".yml", ".json"}
SCRIPTS = {"train_bash.py", "export_model.py", "train.py"}


@dataclass(frozen=True, slots=True)
class Given:
    """One key as it was written: its full bare name (or ``trainer.name``), its value, its place."""

    key: str
    value: Any
    place: str


@dataclass(slots=True)
class Written:
    """Everything that was written: the file's keys first, then the command line's, each in order."""

    file: Path | None = None
    grouped: bool = False
    flags: bool = False
    dry_run: bool = False
    given: list[Given] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_words(words: Sequence[str], vocabulary: Vocabulary) -> Written:
    """Read the words of a command line, and the file that they name.

    Raises:
        UsageError: for a word that is neither a file, a ``key=value`` nor a flag, or a second file.
        ConfigError: for an unknown flag, a flag without its value, or a file that cannot be read.
    """
    written = Written()
    rest = list(words)
    command: list[Given] = []
    while rest:
        word = rest.pop(0)
        if word.replace("_", "-") == "--dry-run":
            written.dry_run = True
        elif word.startswith("--"):
            written.flags = True
            command.append(_flag(word, rest, vocabulary, written.notes))
        elif _is_override(word, vocabulary):
            command += _overrides(word, vocabulary)
        elif Path(word).name in SCRIPTS:
            written.notes.append(f"{word}: the script's name is not needed and was skipped")
        else:
            _take_file(word, written)
    if written.file:
        written.given = _file_keys(written.file, vocabulary, written)
    written.given += command
    return written


def _take_file(word: str, written: Written) -> None:
    if Path(word).suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"{word!r} is neither a configuration file nor an option",
            where=COMMAND_LINE,
            hint="A configuration ends in .yaml, .yml or .json; options are key=value or --key value.",
        )
    if written.file:
        raise UsageError(f"there are two configuration files, {written.file} and {word}", where=COMMAND_LINE)
    written.file = Path(word)


def _is_override(word: str, vocabulary: Vocabulary) -> bool:
    key, equals, _ = word.partition("=")
    if not equals:
        return False
    group = key.partition(".")[0]
    known = key in vocabulary.names or group in vocabulary.groups() or group == "trainer"
    return known or not (Path(word).suffix.lower() in SUFFIXES and Path(word).exists())


def _overrides(word: str, vocabulary: Vocabulary) -> Iterator[Given]:
    for key, value in parse_overrides([word]).items():
        yield from _leaves(key, value, COMMAND_LINE, vocabulary)


def _flag(word: str, rest: list[str], vocabulary: Vocabulary, notes: list[str]) -> Given:
    head, equals, text = word[2:].partition("=")
    written = head.replace("-", "_").rpartition(".")[2]
    place = f"{COMMAND_LINE}:--{head}"
    if written.startswith("no_") and written not in vocabulary.names:
        positive = written.removeprefix("no_")
        name = vocabulary.names.get(positive)
        if name and name.kind == "bool" and not equals:
            return Given(positive, False, place)
    key, short = vocabulary.full_name(written, place)
    if short:
        notes.append(f"--{head} was read as --{key}")
    kind = vocabulary.names[key].kind
    values = [text] if equals else _values_after(rest, kind, vocabulary)
    return Given(key, _value(values, kind, key, place), place)


def _values_after(rest: list[str], kind: Kind, vocabulary: Vocabulary) -> list[str]:
    """Take the words that belong to a flag from the front of ``rest``."""
    taken: list[str] = []
    while rest and not rest[0].startswith("--"):
        if kind == "bool" and rest[0].lower() not in TRUE | FALSE and _stands_alone(rest[0], vocabulary):
            break
        if taken and (kind != "list" or _is_override(rest[0], vocabulary)):
            break
        taken.append(rest.pop(0))
    return taken


def _stands_alone(word: str, vocabulary: Vocabulary) -> bool:
    return Path(word).suffix.lower() in SUFFIXES or _is_override(word, vocabulary)


def _value(values: list[str], kind: Kind, key: str, place: str) -> Any:
    if kind == "bool":
        return truth(values[0], place) if values else True
    if kind == "any" and not values:
        return True
    if not values:
        raise ConfigError(f"--{key} needs a value", where=place)
    if len(values) > 1:
        return [word for value in values for word in value.split(",") if word]
    text = values[0]
    if text in ("null", "None") or (text == "none" and kind in ("integer", "number")):
        return None
    if kind in ("mapping", "any") and text[:1] in "{[" and text:
        return _structure(text, place)
    if kind == "any" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    return text


def _structure(text: str, place: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "a syntax error"
        raise ConfigError(f"the value {text!r} is not valid JSON: {problem}", where=place) from error


def _file_keys(path: Path, vocabulary: Vocabulary, written: Written) -> list[Given]:
    content = read_yaml(path)
    lines = key_lines(path)
    given: list[Given] = []
    for key, value in content.items():
        place = f"{path}:{lines.get(key, 0) or '?'}"
        written.grouped |= key in vocabulary.groups() or key.partition(".")[0] in vocabulary.groups()
        given += _leaves(key, value, place, vocabulary)
    seen: dict[str, str] = {}
    for item in given:
        if item.key in seen:
            raise ConfigError(f"{item.key} is given twice", where=item.place, hint=f"It is also at {seen[item.key]}.")
        seen[item.key] = item.place
    return given


def _leaves(key: str, value: Any, place: str, vocabulary: Vocabulary) -> Iterator[Given]:
    """Split a group, or ``group.name``, into bare names; names are checked later, with all others."""
    groups = vocabulary.groups()
    head, dot, name = key.partition(".")
    if head == "trainer" and "trainer" in vocabulary.model.model_fields:
        entries = {name: value} if dot else value
        if entries is not None and not isinstance(entries, Mapping):
            raise ConfigError("trainer is a mapping of argument names to values", where=place)
        for inner, item in (entries or {}).items():
            yield Given(f"trainer.{inner}", item, place)
    elif head in groups and (dot or isinstance(value, Mapping)):
        entries = {name: value} if dot else value
        for inner, item in entries.items():
            if inner not in groups[head].model_fields:
                hint = vocabulary.nearest(str(inner))
                raise ConfigError(f"the group {head} has no key {inner!r}", where=place, hint=hint)
            yield Given(str(inner), item, place)
    elif head in groups and head not in vocabulary.homes:
        if value is not None:
            hint = f"Its options: {', '.join(groups[head].model_fields)}."
            raise ConfigError(f"{head} is a group of options and needs a mapping", where=place, hint=hint)
    else:
        yield Given(key.replace("-", "_"), value, place)


def key_lines(path: Path) -> dict[str, int]:
    """The line (from 1) of each key at the top of a YAML or JSON mapping.

    Raises:
        ConfigError: when a key stands there twice.
    """
    node = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    lines: dict[str, int] = {}
    for name, _ in getattr(node, "value", None) or ():
        if name.value in lines:
            raise ConfigError(
                f"{name.value} is given twice",
                where=f"{path}:{name.start_mark.line + 1}",
                hint=f"It is also at line {lines[name.value]}.",
            )
        lines[name.value] = name.start_mark.line + 1
    return lines
