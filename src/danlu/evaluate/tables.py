"""Predictions of any tool as columns: JSON lines, JSON, csv and the other kinds of files that danlu reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.core.console import note, warn
from danlu.core.errors import DataError, did_you_mean
from danlu.data.rows import BadRow, RawRow
from danlu.data.sources import iter_raw

PREDICTIONS = ("predict", "prediction", "response", "output", "generated_text")
REFERENCES = ("label", "reference", "target", "gold", "answer")
"""Names that are tried, in this order, where none are given: danlu and LLaMA-Factory write the first of each."""


@dataclass(frozen=True, slots=True)
class Table:
    """What a file of predictions holds.

    Attributes:
        predictions: the answers.
        references: what was wanted; None where the file does not say.
        fields: all further columns by name; None where a row lacks a value.
        rows: the rows as they are in the file, in the same order.
    """

    predictions: tuple[str, ...]
    references: tuple[str, ...] | None
    fields: dict[str, tuple[Any, ...]]
    rows: tuple[dict[str, Any], ...]


def read_table(path: Path, *, predict_column: str = "", reference_column: str = "") -> Table:
    """Read a file of predictions; rows with ``index``, as danlu writes them, are put in its order.

    Args:
        path: the file.
        predict_column: where the answers are; looked for by default.
        reference_column: where the references are; looked for by default, and they may be missing then.

    Raises:
        DataError: when the file or a row cannot be read (a torn last line is warned of), or a column is missing.
    """
    rows = _rows(path)
    if all(isinstance(row.value.get("index"), int) for row in rows):
        rows.sort(key=lambda row: row.value["index"])
    columns = list(dict.fromkeys(name for row in rows for name in row.value))
    predict = _column(path, columns, predict_column, PREDICTIONS)
    if predict is None:
        raise DataError(
            "no column of it is known to hold predictions",
            where=str(path),
            hint=f"Name one with --predict-column: {', '.join(columns)}.",
        )
    rest = [name for name in columns if name != predict]
    reference = _column(path, rest, reference_column, REFERENCES)
    if (predict, reference) not in ((PREDICTIONS[0], REFERENCES[0]), (predict_column, reference_column)):
        note(
            f"{path.name}: predictions are in {predict!r}, references {f'in {reference!r}' if reference else 'nowhere'}"
        )
    return Table(
        tuple(_text(row, predict) for row in rows),
        None if reference is None else tuple(_text(row, reference) for row in rows),
        {name: tuple(row.value.get(name) for row in rows) for name in rest if name != reference},
        tuple(row.value for row in rows),
    )


def _rows(path: Path) -> list[RawRow]:
    found = list(iter_raw(path))
    bad = [row for row in found if isinstance(row, BadRow)]
    if bad and bad == found[-1:] and len(found) > 1 and path.suffix in (".jsonl", ".ndjson"):
        warn(f"{bad[0]}: the file was cut off there, and the row is left out")
    elif bad:
        raise DataError(f"{bad[0].message} ({len(bad)} rows cannot be read)", where=bad[0].place)
    rows = [row for row in found if isinstance(row, RawRow)]
    if not rows:
        raise DataError("there are no predictions in it", where=str(path))
    return rows


def _column(path: Path, columns: Sequence[str], named: str, usual: Sequence[str]) -> str | None:
    if named and named not in columns:
        hint = did_you_mean(named, columns) or f"Its columns: {', '.join(columns)}."
        raise DataError(f"there is no column {named!r}", where=str(path), hint=hint)
    return named or next((name for name in usual if name in columns), None)


def _text(row: RawRow, column: str) -> str:
    value = row.value.get(column)
    if value is None or isinstance(value, (list, dict)):
        kind = {type(None): "missing", list: "a list"}.get(type(value), "an object")
        raise DataError(f"the value of {column!r} is {kind}, not a text", where=str(row.origin))
    return value if isinstance(value, str) else str(value)
