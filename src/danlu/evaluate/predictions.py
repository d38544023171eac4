"""``generated_predictions.jsonl``: written while answers arrive, exact after a kill, ordered at the end.

While a run is under way every answer is appended with its ``index`` in one system call, in the order in
which answers finish. Beside it a small hidden file, ``.<name>.state``, remembers what made them. Opening
the file again drops a torn last line and tells which rows are done. :meth:`PredictionFile.finish` puts the
rows into dataset order and into the schema of the style, in one step:

==========  ==============================================  ===========
style       keys of a row                                   final line break
==========  ==============================================  ===========
``et``      label, predict                                  no
``lf``      prompt, predict, label                          yes
``danlu``   prompt, predict, label, scores…, index, …       yes
==========  ==============================================  ===========
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from danlu.core.console import note, warn
from danlu.core.errors import DataError, RunError, UsageError
from danlu.core.files import replacing, write_json
from danlu.evaluate.lines import append, encoded

Style: TypeAlias = Literal["et", "lf", "danlu"]

KEYS: dict[str, tuple[str, ...]] = {
    "et": ("label", "predict"),
    "lf": ("prompt", "predict", "label"),
    "danlu": ("prompt", "predict", "label"),
}
FILE_NAME = "generated_predictions.jsonl"


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer.

    Attributes:
        index: place of the row in the dataset, from 0.
        predict: the answer.
        label: the reference.
        prompt: what was asked; empty in the ``et`` style.
        extra: further fields of the row, such as scores and the row's key.
    """

    index: int
    predict: str
    label: str
    prompt: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


class PredictionFile:
    """The predictions of one run, open for writing.

    Args:
        path: the file; its folder is made if needed.
        style: which tool's schema the finished file has.
        total: rows of the dataset.
        fingerprint: what the answers depend on, by name (model, data, template, generation …). A file made
            with anything else is set aside as ``<name>.previous.jsonl``, and a warning names the change.

    Raises:
        UsageError: for an unknown style.
        RunError: when the file cannot be read or written.
    """

    def __init__(self, path: Path, style: Style, total: int, *, fingerprint: Mapping[str, str] | None = None) -> None:
        if style not in KEYS:
            raise UsageError(f"unknown style of predictions {style!r}", hint=f"Known: {', '.join(KEYS)}.")
        self.path, self.style, self.total = path, style, total
        self.state_path = path.with_name(f".{path.name}.state")
        self._state = {"style": style, "total": total, "fingerprint": dict(fingerprint or {})}
        self._rows: dict[int, dict[str, Any]] = {}
        self._finished = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._open()

    def done(self) -> set[int]:
        """The indexes that have an answer."""
        return set(self._rows)

    @property
    def finished(self) -> bool:
        """Whether the file is complete, ordered and in its final schema."""
        return self._finished

    def add(self, index: int, prompt: str, predict: str, label: str, **extra: Any) -> None:
        """Append one answer; it survives a kill from the moment this returns.

        Raises:
            UsageError: when the index is outside the dataset, already there, or an extra name is taken.
            RunError: when the disk is full.
        """
        if not 0 <= index < self.total:
            raise UsageError(f"row {index} is outside the {self.total} rows of the dataset", where=str(self.path))
        if index in self._rows:
            raise UsageError(f"row {index} already has an answer", where=str(self.path))
        row = {"prompt": prompt, "predict": predict, "label": label, **extra, "index": index}
        append(self.path, row)
        self._rows[index] = row
        self._finished = False

    def predictions(self) -> list[Prediction]:
        """The answers so far, in dataset order."""
        return [_prediction(self._rows[index], index) for index in sorted(self._rows)]

    def finish(self, scores: Sequence[Mapping[str, float]] | None = None) -> None:
        """Put the rows into dataset order and the style's schema, in one step.

        Args:
            scores: per-row scores in dataset order, written by the ``danlu`` style.

        Raises:
            RunError: when rows are missing or the disk is full; the file then stays as it was.
            UsageError: when there are not as many scores as rows.
        """
        missing = [index for index in range(self.total) if index not in self._rows]
        if missing:
            raise RunError(
                f"{len(missing)} of {self.total} rows have no answer yet, the first is row {missing[0]}",
                where=str(self.path),
                hint="Run the same command again to go on.",
            )
        if scores is not None and len(scores) != self.total:
            raise UsageError(f"{len(scores)} rows of scores do not fit {self.total} predictions")
        if scores is not None:
            for index, row in self._rows.items():
                row.pop("index", None)
                row.update(scores[index])
                row["index"] = index
        lines = [encoded(self._final(self._rows[index])) for index in range(self.total)]
        text = b"\n".join(lines) + (b"\n" if lines and self.style != "et" else b"")
        with replacing(self.path) as temporary:
            temporary.write_bytes(text)
        write_json(self.state_path, {**self._state, "finished": True})
        self._finished = True

    def discard(self) -> None:
        """Remove the file and its state: the answers have served."""
        self.path.unlink(missing_ok=True)
        self.state_path.unlink(missing_ok=True)

    def _final(self, row: Mapping[str, Any]) -> dict[str, Any]:
        keys = KEYS[self.style]
        base = {key: row.get(key, "") for key in keys}
        return base if self.style != "danlu" else {**base, **{key: row[key] for key in row if key not in base}}

    def _open(self) -> None:
        before = self._read_state()
        finished = bool(before.pop("finished", False))
        if self.path.exists() and before != self._state:
            self._set_aside(before)
        if not self.path.exists():
            write_json(self.state_path, self._state)
            return
        raw = self._read_bytes()
        rows, whole = _parse(raw)
        indexed = [row for row in rows if _index(row) is not None]
        if whole and len(rows) == self.total and not indexed:
            # only a finished file of the et and lf styles has rows without an index
            self._rows = dict(enumerate(rows))
            self._finished = True
            return
        self._rows = {row["index"]: row for row in indexed if row["index"] < self.total}
        self._finished = finished and len(self._rows) == len(rows) == self.total
        if len(indexed) < len(rows) or not whole:
            warn(f"{self.path.name}: a line that was cut off is dropped, its row is answered again")
        if len(self._rows) < len(rows) or not whole or not raw.endswith(b"\n"):
            with replacing(self.path) as temporary:
                temporary.write_bytes(b"".join(encoded(row) + b"\n" for row in self._rows.values()))
        if self._rows and not self._finished:
            note(f"{self.path.name}: {len(self._rows)} of {self.total} answers are kept")

    def _read_bytes(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise RunError(f"cannot read it: {error.strerror}", where=str(self.path)) from error

    def _read_state(self) -> dict[str, Any]:
        try:
            state = json.loads(self.state_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def _set_aside(self, before: Mapping[str, Any]) -> None:
        aside = self.path.with_name(f"{self.path.stem}.previous{self.path.suffix}")
        try:
            self.path.replace(aside)
        except OSError as error:
            raise RunError(f"cannot move it aside: {error.strerror}", where=str(self.path)) from error
        warn(
            f"{self.path.name} was made with {_change(before, self._state)}; "
            f"starting over, the old answers are in {aside.name}"
        )


def read_predictions(path: Path) -> list[Prediction]:
    """Read predictions of any style, finished or not, in dataset order.

    Raises:
        DataError: when the file is missing, or a line other than a torn last one cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError("there are no predictions to read", where=str(path)) from error
    lines = raw.split(b"\n")
    found: list[Prediction] = []
    for number, line in enumerate(lines, start=1):
        row = _decode(line)
        if row is not None and "predict" in row and "label" in row:
            place = _index(row)
            found.append(_prediction(row, len(found) if place is None else place))
        elif line.strip() and number < len(lines):
            raise DataError("this line is not a prediction with predict and label", where=f"{path}:{number}")
    return sorted(found, key=lambda prediction: prediction.index)


def _prediction(row: Mapping[str, Any], index: int) -> Prediction:
    known = ("prompt", "predict", "label", "index")
    extra = {key: value for key, value in row.items() if key not in known}
    return Prediction(index, str(row["predict"]), str(row["label"]), str(row.get("prompt", "")), extra)


def _parse(raw: bytes) -> tuple[list[dict[str, Any]], bool]:
    """The readable rows of a file, and whether that was all of it."""
    rows, whole = [], True
    for line in raw.split(b"\n"):
        row = _decode(line)
        if row is not None and "predict" in row and "label" in row:
            rows.append(row)
        elif line.strip():
            whole = False
    return rows, whole


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _index(row: Mapping[str, Any]) -> int | None:
    index = row.get("index")
    return index if isinstance(index, int) and index >= 0 else None


def _change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = before.get("fingerprint"), now["fingerprint"]
    if not isinstance(old, dict):
        return "settings that are not recorded"
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    names += [name for name in ("style", "total") if before.get(name) != now[name]]
    words = {"style": "file style", "total": "number of rows"}
    return "another " + " and ".join(words.get(name, name) for name in names)
