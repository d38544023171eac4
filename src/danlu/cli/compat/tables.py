"""The tables of old names, read from ``assets/compat/*.yaml``.

One table a tool: what holds where a command is silent (``defaults``), names and values that are called
otherwise here (``renamed``, ``values``), names that are handed on (``passed``), and for every other name the
reason why it has no effect (``answered``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from danlu.core.config import read_yaml

FOLDER = Path(__file__).parents[2] / "assets" / "compat"


@dataclass(frozen=True, slots=True)
class Rename:
    """Another name for a key.

    Attributes:
        to: our name (``trainer.x`` is handed to transformers).
        convert: the function of :mod:`danlu.cli.compat.convert` that makes our value from the old one.
        kind: the kind of the old value, where it is not ours.
        note: what to add to the note about it.
    """

    to: str
    convert: str = ""
    kind: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """Why a key is not used, and what to use instead.

    Attributes:
        level: ``ignored`` when the result is the same without it, ``refused`` when it would differ.
        default: the value with which the key asks for nothing.
        why: the reason, a clause without full stop.
        use: what to do instead, a sentence.
    """

    level: Literal["ignored", "refused"]
    default: Any
    why: str
    use: str


@dataclass(frozen=True, slots=True)
class ValueRule:
    """What one value of a key becomes: another value (``to``), or a refusal with its reason."""

    to: str = ""
    refused: str = ""
    use: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Everything known about the names of one tool."""

    name: str
    defaults: Mapping[str, Any]
    marks: frozenset[str]
    passed: Mapping[str, str]
    renamed: Mapping[str, Rename]
    answered: Mapping[str, Answer]
    values: Mapping[str, Mapping[str, ValueRule]]

    def knows(self, key: str) -> bool:
        """Whether the tool's table has its own entry for ``key``."""
        return key in self.renamed or key in self.answered or key in self.marks or key in self.passed


@cache
def table(name: Literal["et", "llamafactory", "transformers", "export"]) -> Table:
    """Read one table; it is read once."""
    content = read_yaml(FOLDER / f"{name}.yaml")
    return Table(
        name=content["name"],
        defaults=content.get("defaults", {}),
        marks=frozenset(content.get("marks", ())),
        passed=content.get("passed", {}),
        renamed={key: Rename(**entry) for key, entry in content.get("renamed", {}).items()},
        answered={key: answer for group in content.get("answered", ()) for key, answer in _answers(group)},
        values={
            key: {value: ValueRule(**rule) for value, rule in rules.items()}
            for key, rules in content.get("values", {}).items()
        },
    )


def _answers(group: Mapping[str, Any]) -> list[tuple[str, Answer]]:
    return [
        (key, Answer(level=group["level"], default=default, why=group["why"], use=group.get("use", "")))
        for key, default in group["keys"].items()
    ]
