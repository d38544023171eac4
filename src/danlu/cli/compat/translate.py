"""From keys as people wrote them to the fields of a configuration, with a note for each change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from danlu.cli.compat.convert import CONVERTERS, coerce
from danlu.cli.compat.tables import Answer, Rename, ValueRule
from danlu.cli.compat.vocabulary import Vocabulary
from danlu.cli.compat.words import COMMAND_LINE, Given
from danlu.core.errors import ConfigError, did_you_mean


@dataclass(slots=True)
class Translation:
    """What was asked for, in our words.

    Attributes:
        values: field → value, by bare name.
        places: field → where it was written.
        trainer: further arguments for transformers, by name.
        notes: what was translated or left out, and why.
    """

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _refusals: list[tuple[str, str, str]] = field(default_factory=list)
    _idle: list[str] = field(default_factory=list)
    _unused: dict[str, list[str]] = field(default_factory=dict)

    def default(self, key: str, value: Any, place: str) -> None:
        """Set ``key`` unless it was given."""
        if key not in self.values:
            self.values[key], self.places[key] = value, place

    def replace(self, key: str, value: Any, place: str) -> None:
        """Set ``key``, whatever was given."""
        self.values[key], self.places[key] = value, place


def translate(given: Sequence[Given], vocabulary: Vocabulary) -> Translation:
    """Translate every key; later ones win over earlier ones from another place.

    Raises:
        ConfigError: for an unknown key, and for all keys whose effect danlu does not have.
    """
    result = Translation()
    for item in given:
        _one(item, vocabulary, result)
    for reason, keys in result._unused.items():
        result.notes.append(f"{', '.join(keys)}: not used; {reason}")
    if result._idle:
        result.notes.append(f"not needed here: {', '.join(sorted(set(result._idle)))}")
    if result._refusals:
        raise _refusal(result._refusals)
    return result


def _one(item: Given, vocabulary: Vocabulary, result: Translation) -> None:
    key = item.key
    renames = [old.renamed[key] for old in vocabulary.tables if key in old.renamed]
    if renames and key not in vocabulary.homes:
        _renamed(item, renames[0], vocabulary, result)
    elif key in vocabulary.homes:
        _field(item, vocabulary, result)
    elif answer := _answer(key.removeprefix("trainer."), vocabulary):
        _answered(item, answer, vocabulary, result)
    elif _passed_kind(key, vocabulary):
        _passed(item, vocabulary, result)
    elif key.startswith("trainer."):
        bare = key.removeprefix("trainer.")
        if bare in vocabulary.homes:
            home = ".".join(vocabulary.homes[bare])
            raise ConfigError(f"{bare} has a field of its own", where=item.place, hint=f"Write {home}.")
        passed = [name for old in vocabulary.tables for name in old.passed]
        raise ConfigError(
            f"transformers' TrainingArguments have no {bare!r}",
            where=item.place,
            hint=did_you_mean(bare, passed) or vocabulary.nearest(bare),
        )
    else:
        raise ConfigError(f"this configuration has no key {key!r}", where=item.place, hint=vocabulary.nearest(key))


def _renamed(item: Given, rename: Rename, vocabulary: Vocabulary, result: Translation) -> None:
    value = item.value
    if value is None:
        return
    if rename.convert:
        value = CONVERTERS[rename.convert](value, item.place)
        if value is None:
            result._idle.append(item.key)
            return
    tail = f"; {rename.note}" if rename.note else ""
    result.notes.append(f"{item.key} → {rename.to}{_shown(item.value, value)}{tail}")
    place = item.place if item.key in item.place else f"{item.place}:{item.key}"
    joined = result.values.get(rename.to)
    if isinstance(value, Mapping) and isinstance(joined, Mapping):  # single settings of one mapping
        result.replace(rename.to, {**joined, **value}, place)
        return
    renamed = Given(rename.to, value, place)
    if rename.to.startswith("trainer."):
        _passed(renamed, vocabulary, result)
    else:
        _field(renamed, vocabulary, result)


def _shown(before: Any, after: Any) -> str:
    return f": {after}" if before != after and not isinstance(after, Mapping) else ""


def _field(item: Given, vocabulary: Vocabulary, result: Translation) -> None:
    key, value = item.key, item.value
    if value is None and not vocabulary.names[key].nullable:
        return
    rule = _rule(key, value, vocabulary)
    if rule and rule.refused:
        result._refusals.append((f"{key}: {value}", f"{item.place}: {rule.refused}", rule.use))
        return
    if rule:
        tail = f"; {rule.note}" if rule.note else ""
        result.notes.append(f"{key} {value} → {rule.to}{tail}")
        value = rule.to
    before = result.places.get(key)
    if before and _source(before) == _source(item.place) != COMMAND_LINE:
        raise ConfigError(f"{key} is given twice", where=item.place, hint=f"It is also at {before}. Keep one of them.")
    result.replace(key, value, item.place)


def _rule(key: str, value: Any, vocabulary: Vocabulary) -> ValueRule | None:
    rules = [old.values.get(key, {}).get(str(value).lower()) for old in vocabulary.tables]
    return next((rule for rule in rules if rule), None)


def _source(place: str) -> str:
    """The file, or the command line, of a place."""
    return COMMAND_LINE if place.startswith(COMMAND_LINE) else place.split(":", maxsplit=1)[0]


def _answer(key: str, vocabulary: Vocabulary) -> Answer | None:
    return next((old.answered[key] for old in vocabulary.tables if key in old.answered), None)


def _answered(item: Given, answer: Answer, vocabulary: Vocabulary, result: Translation) -> None:
    key = item.key.removeprefix("trainer.")
    rule = _rule(key, item.value, vocabulary)
    value = rule.to if rule else item.value
    if _asks_nothing(value, answer.default):
        result._idle.append(key)
    elif answer.level == "refused":
        result._refusals.append((f"{key}: {item.value}", f"{item.place}: {answer.why}", answer.use))
    else:
        use = f". {answer.use}" if answer.use else ""
        result._unused.setdefault(f"{answer.why}{use}", []).append(key)


def _asks_nothing(value: Any, default: Any) -> bool:
    if value is None or value == default:
        return True
    return str(value).lower() == str(default).lower() or (
        isinstance(default, int | float) and as_number(value) == default
    )


def as_number(value: Any) -> float | None:
    """The number that a value is or spells, or None (which the configuration then refuses with its place)."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _passed_kind(key: str, vocabulary: Vocabulary) -> str | None:
    bare = key.removeprefix("trainer.")
    return next((old.passed[bare] for old in vocabulary.tables if bare in old.passed), None)


def _passed(item: Given, vocabulary: Vocabulary, result: Translation) -> None:
    bare = item.key.removeprefix("trainer.")
    if item.value is None:
        return
    value = coerce(item.value, vocabulary.names[bare].kind, item.place)
    if isinstance(value, Mapping) and isinstance(result.trainer.get(bare), Mapping):
        value = {**result.trainer[bare], **value}
    result.trainer[bare] = value
    result.places[f"trainer.{bare}"] = item.place


def _refusal(refusals: Sequence[tuple[str, str, str]]) -> ConfigError:
    (what, why, use), *more = refusals
    if not more:
        return ConfigError(f"{what} is refused: {why.split(': ', 1)[1]}", where=why.split(": ", 1)[0], hint=use)
    lines = [f"\n  {what} ({why}). {use}".rstrip() for what, why, use in refusals]
    return ConfigError(f"{len(refusals)} options would change the result and cannot be honoured:{''.join(lines)}")
