"""What is known about each metric: formula, range, direction, pitfalls, source, in both languages.

The texts are data, ``assets/metrics/*.yaml``, one file for each metric; `danlu metrics` and the page
``metrics.md`` are made from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal, TypeAlias

import yaml

Language: TypeAlias = Literal["en", "zh"]
Direction: TypeAlias = Literal["higher", "lower", "none"]


@dataclass(frozen=True, slots=True)
class Card:
    """One metric.

    Attributes:
        name: in the table of metrics.
        group: heading under which the documentation has it.
        scores: names of the scores it gives, in order.
        low: smallest possible value.
        high: largest possible value; None where there is none.
        direction: which values are better; ``none`` where it depends.
        needs: what it takes beside the predictions: reference, model, encoder, field.
        packages: optional packages that it imports.
        source: where the formula comes from.
        texts: for each language title, formula, and a list of pitfalls.
        options: what each option means, for each language.
    """

    name: str
    group: str
    scores: tuple[str, ...]
    low: float
    high: float | None
    direction: Direction
    needs: tuple[str, ...]
    packages: tuple[str, ...]
    source: str
    texts: dict[str, dict[str, Any]]
    options: dict[str, dict[str, str]]

    def title(self, language: Language) -> str:
        """What it measures, in one line."""
        return str(self.texts[language]["title"])

    def formula(self, language: Language) -> str:
        """How it is computed."""
        return str(self.texts[language]["formula"])

    def pitfalls(self, language: Language) -> tuple[str, ...]:
        """How its numbers mislead."""
        return tuple(self.texts[language]["pitfalls"])


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is there

GROUPS = ("match", "overlap", "diversity", "model", "form", "privacy", "calibration")
"""In the order of the documentation."""


@lru_cache(maxsize=1)
def cards() -> dict[str, Card]:
    """All cards by name, grouped; read once."""
    found = [_card(entry.read_text(encoding="utf-8")) for entry in _files()]
    return {card.name: card for card in sorted(found, key=lambda card: (GROUPS.index(card.group), card.name))}


def direction_of(score: str) -> Direction:
    """Which values of a score are better; ``higher`` for one that no card names."""
    return next((card.direction for card in cards().values() if score in card.scores), "higher")


def _files() -> list[Any]:
    folder = files("danlu").joinpath("assets/metrics")
    return sorted((entry for entry in folder.iterdir() if entry.name.endswith(".yaml")), key=lambda entry: entry.name)


def _card(text: str) -> Card:
    read = yaml.load(text, Loader=_LOADER)
    low, high = read["range"]
    return Card(
        name=read["name"],
        group=read["group"],
        scores=tuple(read["scores"]),
        low=low,
        high=high,
        direction=read["direction"],
        needs=tuple(read.get("needs", ())),
        packages=tuple(read.get("packages", ())),
        source=read["source"],
        texts={language: read[language] for language in ("en", "zh")},
        options=read.get("options", {}),
    )
