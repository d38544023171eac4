"""Answers to be scored, and what everything that scores them shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from danlu.core.errors import DanluError
from danlu.data.rows import kind_of
from danlu.data.schema import Conversation


class RewardError(DanluError):
    """A reward could not be computed: a function or a server gave something that is no reward."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer of the model.

    Attributes:
        prompt: what was asked.
        answer: the model's text, without control tokens.
        reference: the answer that the row brings, or None.
        tokens: length of the answer in tokens.
        finished: whether the model ended it by itself.
        key: content hash of the row (:func:`danlu.data.schema.row_key`).
    """

    prompt: Conversation
    answer: str
    reference: str | None = None
    tokens: int = 0
    finished: bool = True
    key: int = 0

    @property
    def place(self) -> str:
        """The row in words, as files of predictions name it."""
        return f"row {self.key:016x}"


class Reward(Protocol):
    """Something that says how good answers are."""

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """A finite number for each sample, in their order; larger is better.

        Raises:
            DanluError: when that is not possible.
        """


def checked(source: str, values: Any, samples: Sequence[Sample]) -> list[float]:
    """What a source of rewards returned, as numbers.

    Args:
        source: its name, for errors.
        values: a list, tuple, array or tensor.
        samples: what was scored.

    Raises:
        RewardError: when there is not exactly one finite number for each sample; naming the source and the sample.
    """
    if hasattr(values, "tolist"):
        values = values.tolist()
    if not isinstance(values, (list, tuple)):
        raise RewardError(
            f"it returned {_kind(values)} instead of a list of {len(samples)} numbers",
            where=source,
            hint="It gets many answers and returns one number for each, in their order.",
        )
    if len(values) != len(samples):
        raise RewardError(
            f"it returned {len(values)} numbers for {len(samples)} answers",
            where=source,
            hint="It has to return one number for each answer, in their order.",
        )
    return [_number(source, place, value, sample) for place, (value, sample) in enumerate(zip(values, samples))]


def _number(source: str, place: int, value: Any, sample: Sample) -> float:
    numeric = isinstance(value, (int, float)) or (hasattr(value, "__float__") and not isinstance(value, str))
    if numeric and math.isfinite(number := float(value)):
        return number
    shown = f"{value!r}" if numeric or value is None else _kind(value)
    raise RewardError(
        f"it returned {shown} for answer {place} of this batch ({sample.place}: {sample.answer[:60]!r})",
        where=source,
        hint="A reward is a finite number; give 0 where there is nothing to reward.",
    )


def _kind(value: object) -> str:
    return "None" if value is None else kind_of(value)
