"""Where rewards come from: rules by name, functions in Python, servers; several of them weighted and added.

How sources are written says :mod:`danlu.tune.online.sources`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from danlu.core.errors import ConfigError, did_you_mean
from danlu.core.registry import Registry
from danlu.tune.online.samples import Reward, Sample, checked
from danlu.tune.online.sources import URL, RewardSpec, parse_source

_BUILTIN = "danlu.tune.online.builtin_rewards"

REWARDS = Registry(
    "reward",
    {
        "length": f"{_BUILTIN}:length",
        "chinese": f"{_BUILTIN}:chinese",
        "contains": f"{_BUILTIN}:contains",
        "exact_match": f"{_BUILTIN}:exact_match",
        "regex": f"{_BUILTIN}:regex",
        "json": f"{_BUILTIN}:json",
        "format_think": f"{_BUILTIN}:format_think",
        "number": f"{_BUILTIN}:number",
    },
)
"""Rules by name: a function of the arguments written behind it that returns ``Sample -> float``."""


def open_reward(spec: RewardSpec) -> Reward:
    """What scores answers for a source.

    Raises:
        ConfigError: when its arguments are wrong.
        UsageError: when there is no such name.
    """
    if URL.match(spec.source):
        from danlu.tune.online.remote_reward import RemoteReward

        return RemoteReward(spec.source, **fitting(RemoteReward, spec, hidden=("url", "sleep")))
    if ":" in spec.source:
        from danlu.tune.online.function_reward import FunctionReward

        return FunctionReward(spec.source, spec.arguments)
    factory = REWARDS[spec.source]
    return RuleReward(spec.source, factory(**fitting(factory, spec)))


def fitting(factory: Any, spec: RewardSpec, hidden: Sequence[str] = ()) -> dict[str, Any]:
    """A source's arguments as its factory annotates them.

    Raises:
        ConfigError: for an unknown or missing argument, or a value of another type.
    """
    where = f"reward_funcs:{spec.source}"
    hints = get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    parameters = {name: item for name, item in inspect.signature(factory).parameters.items() if name not in hidden}
    missing = [n for n, item in parameters.items() if item.default is item.empty and n not in spec.arguments]
    if missing:
        raise ConfigError(f"this reward needs {missing[0]}", where=where, hint=f"Write {spec.source}({missing[0]}=…).")
    values = {}
    for name, value in spec.arguments.items():
        if name not in parameters:
            hint = did_you_mean(name, parameters) or (f"It has {', '.join(parameters)}." if parameters else None)
            raise ConfigError(f"this reward has no argument {name}", where=where, hint=hint)
        try:
            values[name] = TypeAdapter(hints.get(name, Any)).validate_python(value)
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"]
            raise ConfigError(f"{reason} (got {value!r})", where=f"{where}:{name}") from error
    return values


class RuleReward:
    """A rule, asked about one answer at a time.

    Args:
        name: for errors.
        rule: ``Sample -> float``.
    """

    def __init__(self, name: str, rule: Any) -> None:
        self.name, self.rule = name, rule

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """See :class:`danlu.tune.online.samples.Reward`."""
        return checked(self.name, [self.rule(sample) for sample in samples], samples)


@dataclass(frozen=True, slots=True)
class Scored:
    """What answers got.

    Attributes:
        total: the weighted sum for each.
        parts: what each source gave, by label, without its weight.
    """

    total: list[float]
    parts: dict[str, list[float]]


class Rewards:
    """Several rewards, weighted and added.

    Args:
        sources: label and reward of each; equal labels are numbered.
        weights: one for each source; 1 by default.

    Raises:
        ConfigError: when there is nothing, or the weights do not fit.
    """

    def __init__(self, sources: Iterable[tuple[str, Reward]], weights: Sequence[float] = ()) -> None:
        self.sources = _numbered(list(sources))
        if not self.sources:
            raise ConfigError(
                "nothing says how good an answer is",
                where="reward_funcs",
                hint=f"Name rewards ({', '.join(REWARDS.names())}, file.py:function, a URL), or give a reward_model.",
            )
        if weights and len(weights) != len(self.sources):
            raise ConfigError(
                f"there are {len(weights)} weights for {len(self.sources)} rewards ({', '.join(self.sources)})",
                where="reward_weights",
                hint="Give one for each, in their order, or none.",
            )
        if not all(map(math.isfinite, weights)):
            raise ConfigError("a weight is not a number", where=f"reward_weights:{', '.join(map(str, weights))}")
        self.weights = tuple(weights) or (1.0,) * len(self.sources)

    def score(self, samples: Sequence[Sample]) -> Scored:
        """Ask every source about all samples.

        Raises:
            DanluError: when one of them cannot tell.
        """
        if not samples:
            return Scored([], {label: [] for label in self.sources})
        parts = {label: checked(label, reward.score(samples), samples) for label, reward in self.sources.items()}
        total = [sum(weight * value for weight, value in zip(self.weights, row)) for row in zip(*parts.values())]
        return Scored(total, parts)


def _numbered(sources: Sequence[tuple[str, Reward]]) -> dict[str, Reward]:
    named: dict[str, Reward] = {}
    for label, reward in sources:
        number, name = 2, label
        while name in named:
            name, number = f"{label}_{number}", number + 1
        named[name] = reward
    return named


def open_sources(entries: Iterable[str | Mapping[str, Any]]) -> list[tuple[str, Reward]]:
    """Label and reward of each source; functions are imported and their parameters looked at, nothing is scored.

    Args:
        entries: as :func:`danlu.tune.online.sources.split_sources` gives them.

    Raises:
        ConfigError: see :func:`danlu.tune.online.sources.parse_source` and :func:`open_reward`.
    """
    specs = [parse_source(entry) for entry in entries]
    return [(spec.label, open_reward(spec)) for spec in specs]


def open_rewards(
    entries: Iterable[str | Mapping[str, Any]],
    weights: Sequence[float] = (),
    *,
    further: Iterable[tuple[str, Reward]] = (),
) -> Rewards:
    """All rewards of a run, ready to score.

    Args:
        entries: see :func:`open_sources`.
        weights: one for each entry and then for each of ``further``, or none.
        further: rewards that are open already, such as a model, behind the entries.

    Raises:
        ConfigError: see :func:`open_sources` and :class:`Rewards`.
    """
    return Rewards([*open_sources(entries), *further], weights)
