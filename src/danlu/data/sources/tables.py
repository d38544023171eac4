"""Rows of tables and of plain text: csv, tsv, parquet, arrow, txt."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from danlu.core.errors import DataError, MissingDependency
from danlu.data.rows import BadRow, RawRow
from danlu.data.schema import Origin
from danlu.data.sources.lines import Line, numbered_lines

_BATCH = 1024
_LONGEST_CELL = 2**31 - 1


def iter_text(path: Path) -> Iterator[RawRow | BadRow]:
    """Every line that is not blank is one row ``{"text": line}``."""
    row = 0
    for line in numbered_lines(path):
        if not line.problem and not line.text.strip():
            continue
        origin = Origin(str(path), line.number, row)
        row += 1
        yield (BadRow(origin, "", line.problem) if line.problem else RawRow({"text": line.text.rstrip()}, origin))


def iter_csv(path: Path) -> Iterator[RawRow | BadRow]:
    """Comma-separated values; the first record names the columns."""
    return iter_separated(path, ",")


def iter_tsv(path: Path) -> Iterator[RawRow | BadRow]:
    """Tab-separated values; the first record names the columns."""
    return iter_separated(path, "\t")


class _Feed:
    """Lines for the csv reader that can be given back: one wrong quote must not swallow the file."""

    def __init__(self, path: Path) -> None:
        self._lines = numbered_lines(path)
        self._waiting: deque[Line] = deque()
        self.taken: list[Line] = []
        self.damaged: list[Line] = []

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self._waiting.popleft() if self._waiting else next(self._lines)
        while line.problem:
            self.damaged.append(line)
            line = self._waiting.popleft() if self._waiting else next(self._lines)
        self.taken.append(line)
        return line.text

    def give_back(self) -> None:
        """All but the first line of the record that could not be read."""
        self._waiting.extendleft(reversed(self.taken[1:]))


def iter_separated(path: Path, delimiter: str, names: Sequence[str] = ()) -> Iterator[RawRow | BadRow]:
    """Separated values.

    Args:
        path: the file.
        delimiter: between cells.
        names: of the columns, for a file whose first record does not name them, or not all; a first record of
            nothing but these names is then no row. By default the first record names the columns.

    Raises:
        DataError: when the names of the columns are missing or repeat.
    """
    csv.field_size_limit(_LONGEST_CELL)
    feed = _Feed(path)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    header = list(names) or _header(path, reader)
    row = 0
    while True:
        feed.taken.clear()
        problem, record = "", None
        try:
            record = next(reader, None)
        except csv.Error as error:
            problem = f"not valid CSV: {error}"
            feed.give_back()
            reader = csv.reader(feed, delimiter=delimiter, strict=True)
        for line in feed.damaged:
            yield BadRow(Origin(str(path), line.number, row), "", line.problem)
            row += 1
        feed.damaged.clear()
        if record is None and not problem:
            return
        if not problem and (not record or (names and row == 0 and set(record) <= {"", *names})):
            continue
        origin = Origin(str(path), feed.taken[0].number, row)
        row += 1
        yield BadRow(origin, "", problem) if problem else _record(record or [], header, origin)


def _record(record: list[str], header: list[str], origin: Origin) -> RawRow | BadRow:
    if len(record) != len(header):
        return BadRow(origin, "", f"it has {len(record)} cells, the header has {len(header)}")
    return RawRow(dict(zip(header, record)), origin)


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = [name.strip() for name in next(reader)]
    except (csv.Error, StopIteration) as error:
        raise DataError("its first line does not name the columns", where=f"{path}:1") from error
    if len(set(header)) != len(header) or not all(header):
        raise DataError(
            f"its column names are empty or repeat: {', '.join(header)}",
            where=f"{path}:1",
            hint="The first line of a table names each column once.",
        )
    return header


def iter_parquet(path: Path) -> Iterator[RawRow | BadRow]:
    """Rows of a parquet file, a thousand at a time.

    Raises:
        MissingDependency: without pyarrow.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingDependency("pyarrow", "to read parquet files", "data") from error
    try:
        table = parquet.ParquetFile(path)
        yield from _batches(path, table.iter_batches(batch_size=_BATCH))
    except (ArrowException, OSError) as error:
        raise _unreadable(path, "parquet", error) from error


def iter_arrow(path: Path) -> Iterator[RawRow | BadRow]:
    """Rows of an arrow file or stream, as the datasets library keeps them.

    Raises:
        MissingDependency: without pyarrow.
    """
    try:
        from pyarrow import ArrowException, ArrowInvalid, ipc, memory_map
    except ImportError as error:
        raise MissingDependency("pyarrow", "to read arrow files", "data") from error
    try:
        with memory_map(str(path)) as stream:
            try:
                reader: Any = ipc.open_file(stream)
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            except ArrowInvalid:
                stream.seek(0)
                batches = iter(ipc.open_stream(stream))
            yield from _batches(path, batches)
    except (ArrowException, OSError) as error:
        raise _unreadable(path, "arrow", error) from error


def _batches(path: Path, batches: Any) -> Iterator[RawRow | BadRow]:
    row = 0
    for batch in batches:
        for value in batch.to_pylist():
            yield RawRow(value, Origin(str(path), 0, row))
            row += 1


def _unreadable(path: Path, kind: str, error: Exception) -> DataError:
    reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
    return DataError(f"it cannot be read as {kind} ({reason})", where=str(path))
