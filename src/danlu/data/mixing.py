"""Several datasets become one: joined, or interleaved by weight; the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from typing import Literal, TypeAlias, TypeVar

from danlu.core.errors import ConfigError

Strategy: TypeAlias = Literal["concat", "interleave_under", "interleave_over", "interleave_once"]
T = TypeVar("T")


def mix(
    groups: Sequence[Sequence[T]],
    strategy: Strategy = "concat",
    weights: Sequence[float] = (),
    *,
    seed: int = 42,
) -> list[T]:
    """Join the rows of several datasets.

    Args:
        groups: rows of each dataset.
        strategy: ``concat`` one after the other; ``interleave_under`` until the first dataset is used up;
            ``interleave_over`` starts short ones again until each was used up once; ``interleave_once`` uses
            every row exactly once.
        weights: how often each dataset is drawn from; in turn when not given.
        seed: of the draws.

    Raises:
        ConfigError: when the weights do not fit the datasets.
    """
    _check(groups, strategy, weights)
    filled = [index for index, group in enumerate(groups) if group]
    if strategy == "concat" or len(groups) < 2 or not filled:
        return list(chain.from_iterable(groups))
    if strategy == "interleave_under" and len(filled) < len(groups):
        return []
    chosen = [groups[index] for index in filled]
    draws = _draws(len(chosen), [weights[index] for index in filled] if weights else (), seed)
    if strategy == "interleave_once":
        return _once(chosen, draws)
    return _until(chosen, draws, everyone=strategy == "interleave_over")


def _check(groups: Sequence[Sequence[T]], strategy: Strategy, weights: Sequence[float]) -> None:
    if not weights:
        return
    if strategy == "concat":
        raise ConfigError(
            "weights are for interleaving, not for concat",
            where="interleave_probs",
            hint="Set mix_strategy to interleave_under, interleave_over or interleave_once.",
        )
    if len(weights) != len(groups):
        raise ConfigError(f"there are {len(weights)} weights for {len(groups)} datasets", where="interleave_probs")
    # a dataset that is never drawn would never be used up
    if any(not weight > 0 for weight in weights):
        raise ConfigError("weights must be above 0", where="interleave_probs")


def _draws(count: int, weights: Sequence[float], seed: int) -> Iterator[int]:
    if not weights:
        while True:
            yield from range(count)
    generator, bounds = random.Random(seed), list(accumulate(weights))
    while True:
        yield from generator.choices(range(count), cum_weights=bounds, k=256)


def _once(groups: Sequence[Sequence[T]], draws: Iterator[int]) -> list[T]:
    mixed: list[T] = []
    used = [0] * len(groups)
    left = sum(len(group) for group in groups)
    for index in draws:
        if used[index] < len(groups[index]):
            mixed.append(groups[index][used[index]])
            used[index] += 1
            left -= 1
            if not left:
                break
    return mixed


def _until(groups: Sequence[Sequence[T]], draws: Iterator[int], *, everyone: bool) -> list[T]:
    mixed: list[T] = []
    used = [0] * len(groups)
    finished: set[int] = set()
    for index in draws:
        group = groups[index]
        mixed.append(group[used[index] % len(group)])
        used[index] += 1
        if used[index] == len(group):
            finished.add(index)
            if not everyone or len(finished) == len(groups):
                break
    return mixed


def sample(rows: Sequence[T], count: int, *, seed: int = 42) -> list[T]:
    """Draw ``count`` rows in random order: all of them before any comes twice, the rest with replacement."""
    if not rows:
        return []
    generator = random.Random(seed)
    drawn = generator.sample(range(len(rows)), min(count, len(rows)))
    drawn += generator.choices(range(len(rows)), k=count - len(drawn))
    return [rows[index] for index in drawn]
