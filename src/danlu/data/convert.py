"""Datasets from one format to another, with what is lost on the way counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from danlu.core.errors import DataError, UsageError, did_you_mean
from danlu.core.files import replacing
from danlu.data.catalog import DatasetDir, Source, resolve
from danlu.data.formats import FORMATS, read_row, usual_shape, write_row
from danlu.data.formats.shape import Format, Shape
from danlu.data.loading import HEAD, shape_of
from danlu.data.rows import BadRow, CannotHold, RawRow
from danlu.data.schema import (
    NOWHERE,
    Conversation,
    Document,
    Example,
    Message,
    Preference,
    Row,
    UnpairedPreference,
)
from danlu.data.sources import iter_raw

_ENDINGS = (".json", ".jsonl")


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What a conversion did.

    Attributes:
        read: rows of the source, good and bad.
        written: rows of the new file.
        bad: rows that could not be read.
        left_out: why good rows have no place in the format, and how many.
        lost: what written rows do not carry over, and how many rows it concerns.
        columns: columns of the source that mean nothing to danlu, and in how many rows they had a value.
        source_format: the format that was read.
    """

    read: int
    written: int
    bad: tuple[BadRow, ...]
    left_out: dict[str, int]
    lost: dict[str, int]
    columns: dict[str, int]
    source_format: str


class _Tally:
    def __init__(self) -> None:
        self.read = self.written = 0
        self.bad: list[BadRow] = []
        self.left_out: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.columns: Counter[str] = Counter()
        self.formats: list[str] = []


def convert(name: str, destination: Path, to: str, *, dataset_dir: DatasetDir = "data") -> ConvertReport:
    """Write a dataset in another format.

    Every written row is read again: what is not the same afterwards is reported as lost.

    Args:
        name: name, file, folder, pattern or hub id.
        destination: file to write, ``.json`` (one array) or ``.jsonl`` (one object a line).
        to: name of a format.
        dataset_dir: folder with dataset_info.json.

    Raises:
        UsageError: for an unknown format or ending.
        DataError: when the source cannot be read or not one of its rows can be written.
    """
    if to not in FORMATS:
        hint = did_you_mean(to, FORMATS) or f"Known: {', '.join(FORMATS)}."
        raise UsageError(f"unknown format {to!r}", where="--to", hint=hint)
    if destination.suffix.lower() not in _ENDINGS:
        raise UsageError("the new file must end in .json or .jsonl", where=str(destination))
    source = resolve(name, dataset_dir)
    paths = source.files()
    if destination.resolve() in [path.resolve() for path in paths]:
        raise UsageError("a dataset cannot be converted onto itself", where=str(destination))
    tally = _Tally()
    values = _converted(paths, source, to, tally)
    with replacing(destination) as temporary:
        _write(temporary, values, array=destination.suffix.lower() == ".json")
        if not tally.written:
            why = next(iter(tally.left_out), None) or (str(tally.bad[0]) if tally.bad else "there is none")
            raise DataError(f"no row can be written as {to}: {why}", where=name)
    return ConvertReport(
        read=tally.read,
        written=tally.written,
        bad=tuple(tally.bad),
        left_out=dict(tally.left_out),
        lost=dict(tally.lost),
        columns=dict(tally.columns),
        source_format=", ".join(dict.fromkeys(tally.formats)),
    )


def _converted(paths: list[Path], source: Source, to: str, tally: _Tally) -> Iterator[dict[str, Any]]:
    target = usual_shape(to)
    for path in paths:
        raw = iter_raw(path)
        head = list(islice(raw, HEAD))
        shape = shape_of(head, source, path, "\n")
        tally.formats.append(shape.format)
        for item in chain(head, raw):
            value = _convert_row(item, shape, target, tally)
            if value is not None:
                yield value


def _convert_row(item: RawRow | BadRow, shape: Shape, target: Shape, tally: _Tally) -> dict[str, Any] | None:
    tally.read += 1
    row = item if isinstance(item, BadRow) else read_row(item.value, shape, item.origin)
    if isinstance(row, BadRow):
        tally.bad.append(row)
        return None
    try:
        value = write_row(row, target.format)
    except CannotHold as error:
        tally.left_out[error.reason] += 1
        return None
    tally.written += 1
    tally.lost.update(differences(row, read_row(value, target, NOWHERE)))
    if isinstance(item, RawRow):
        layout: Format = FORMATS[shape.format]
        known = shape.columns.named() | layout.keys
        tally.columns.update(key for key, cell in item.value.items() if key not in known and cell not in (None, ""))
    return value


def _write(path: Path, values: Iterator[dict[str, Any]], *, array: bool) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        if not array:
            for value in values:
                stream.write(json.dumps(value, ensure_ascii=False) + "\n")
            return
        before = "[\n"
        for value in values:
            text = json.dumps(value, ensure_ascii=False, indent=2).replace("\n", "\n  ")
            stream.write(f"{before}  {text}")
            before = ",\n"
        stream.write("\n]\n" if before != "[\n" else "[]\n")


def differences(row: Row, again: Row | BadRow) -> list[str]:
    """What a row read back from another format no longer has; empty when nothing is lost."""
    if row == again:
        return []
    if type(row) is not type(again):
        return ["the kind of row"]
    found: list[str] = []
    if isinstance(row, Document):
        return ["text"]
    if isinstance(row, Preference) and isinstance(again, Preference):
        found += _of_conversation(row.prompt, again.prompt)
        found += _of_messages((row.chosen, row.rejected), (again.chosen, again.rejected))
        found += ["the margin"] if row.margin != again.margin else []
    elif isinstance(row, (Example, UnpairedPreference)) and isinstance(again, (Example, UnpairedPreference)):
        found += _of_conversation(row.conversation, again.conversation)
    if isinstance(row, UnpairedPreference) and isinstance(again, UnpairedPreference):
        found += ["the label"] if row.desirable != again.desirable else []
    return list(dict.fromkeys(found)) or ["something"]


def _of_conversation(before: Conversation, after: Conversation) -> list[str]:
    found = ["tools"] if before.tools != after.tools else []
    return found + _of_messages(before.messages, after.messages)


def _of_messages(before: tuple[Message, ...], after: tuple[Message, ...]) -> list[str]:
    if [message.role for message in before] != [message.role for message in after]:
        return ["the order of roles"]
    found = []
    for old, new in zip(before, after, strict=True):
        if old.content != new.content:
            found.append("text beside a tool call" if old.tool_calls else "text")
        if old.tool_calls != new.tool_calls:
            found.append("tool calls")
        if old.train != new.train:
            found.append("which turns are trained")
    return found
