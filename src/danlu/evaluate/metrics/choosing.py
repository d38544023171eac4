"""What ``--metrics`` means: sets, metrics, single scores of a metric; and which option belongs to which metric."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from danlu.core.errors import UsageError, did_you_mean
from danlu.core.registry import Registry
from danlu.evaluate.metrics.catalogue import cards
from danlu.evaluate.metrics.column import Column, Pairs

Metric: TypeAlias = Callable[..., tuple[Column, ...]]
"""``(Pairs, *, options…) → columns``; the options are its keyword-only parameters."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One metric that was asked for.

    Attributes:
        name: in the table of metrics.
        scores: the names of the scores that are wanted; empty for all of them.
    """

    name: str
    scores: tuple[str, ...] = ()


def choose(
    metrics: str | Iterable[str], table: Registry, sets: Mapping[str, Sequence[str]]
) -> tuple[tuple[Choice, ...], str]:
    """The metrics that are meant, and a label for them.

    Args:
        metrics: the name of a set, of a metric, or of a score (``rouge-l``); several with commas or as a list.
        table: all metrics.
        sets: names of sets with the metrics in them.

    Raises:
        UsageError: for a name that is none of these, with the nearest.
    """
    names = metrics.split(",") if isinstance(metrics, str) else metrics
    wanted = [name.strip() for name in names if name.strip()]
    if not wanted:
        raise UsageError("no metric is named", hint="`danlu metrics list` shows them all.")
    found: dict[str, tuple[str, ...]] = {}
    for name in wanted:
        for choice in _meaning(name, table, sets):
            before = found.get(choice.name)
            found[choice.name] = () if before == () or not choice.scores else (*(before or ()), *choice.scores)
    label = wanted[0] if len(wanted) == 1 and wanted[0] in sets else "custom"
    return tuple(Choice(name, scores) for name, scores in found.items()), label


def _meaning(name: str, table: Registry, sets: Mapping[str, Sequence[str]]) -> list[Choice]:
    if name in sets:
        return [Choice(metric) for metric in sets[name]]
    if name in table:
        return [Choice(name)]
    homes = {score: card.name for card in cards().values() for score in card.scores}
    if name in homes:
        return [Choice(homes[name], (name,))]
    known = [*sets, *table, *homes]
    hint = did_you_mean(name, known) or f"Known: {', '.join([*sets, *table])}."
    raise UsageError(f"there is no metric set, metric or score {name!r}", hint=hint)


def options_of(metric: Metric) -> dict[str, inspect.Parameter]:
    """The options of a metric: its keyword-only parameters."""
    parameters = inspect.signature(metric).parameters.values()
    return {one.name: one for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}


_KINDS: dict[str, tuple[type, str]] = {"int": (int, "a whole number"), "bool": (bool, "true or false")}


def text_options(table: Registry) -> frozenset[str]:
    """Options that are plain text in every metric that has them, such as a pattern: never to be read as YAML."""
    kinds: dict[str, set[str]] = {}
    for name in table:
        for option, parameter in options_of(table[name]).items():
            kinds.setdefault(option, set()).add(str(parameter.annotation))
    return frozenset(option for option, found in kinds.items() if found <= {"str", "str | Path"})


def _check_kind(option: str, value: Any, parameter: inspect.Parameter) -> None:
    """Refuse a number or a switch that is none; annotations are texts here."""
    first, _, rest = str(parameter.annotation).partition(" | ")
    if first not in _KINDS or (rest == "None" and value is None):
        return
    kind, words = _KINDS[first]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UsageError(f"{option} is {words}, not {value!r}")


def columns_of(choices: Sequence[Choice], table: Registry, pairs: Pairs, options: Mapping[str, Any]) -> list[Column]:
    """All columns that were asked for.

    Raises:
        UsageError: when an option belongs to none of the metrics, a metric lacks one, or two give one score.
    """
    takes = {choice.name: options_of(table[choice.name]) for choice in choices}
    known = {name for parameters in takes.values() for name in parameters}
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known) or f"Their options: {', '.join(sorted(known)) or 'none'}."
            raise UsageError(f"none of the metrics has an option {name!r}", hint=hint)
    columns: list[Column] = []
    for choice in choices:
        parameters = takes[choice.name]
        for name, parameter in parameters.items():
            if parameter.default is inspect.Parameter.empty and name not in options:
                raise UsageError(
                    f"the metric {choice.name} needs {name}=…", hint=f"See `danlu metrics show {choice.name}`."
                )
        given = {name: options[name] for name in parameters if name in options}
        for name, value in given.items():
            _check_kind(name, value, parameters[name])
        made = table[choice.name](pairs, **given)
        columns += [column for column in made if not choice.scores or column.name in choice.scores]
    for column in columns:
        if sum(other.name == column.name for other in columns) > 1:
            raise UsageError(
                f"two of the metrics give a score named {column.name!r}", hint="Measure them one after the other."
            )
    return columns
