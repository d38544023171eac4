"""Raw rows, one after the other, from any kind of file, each with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from danlu.core.errors import DataError, did_you_mean
from danlu.data.rows import BadRow, RawRow
from danlu.data.sources.files import SUFFIXES, suffix_of
from danlu.data.sources.json_rows import iter_json
from danlu.data.sources.tables import iter_arrow, iter_csv, iter_parquet, iter_text, iter_tsv

Reader: TypeAlias = Callable[[Path], Iterator[RawRow | BadRow]]

READERS: dict[str, Reader] = {
    "json": iter_json,
    "jsonl": iter_json,
    "ndjson": iter_json,
    "csv": iter_csv,
    "tsv": iter_tsv,
    "parquet": iter_parquet,
    "arrow": iter_arrow,
    "txt": iter_text,
}


def iter_raw(path: Path) -> Iterator[RawRow | BadRow]:
    """Yield the rows of one file lazily; memory is bounded by the longest row (a thousand rows in parquet).

    Rows that cannot be parsed are yielded as :class:`BadRow` and reading goes on behind them.

    Raises:
        DataError: when nothing of the file can be read: it is missing, empty, compressed, of an unknown
            kind, or in another encoding than UTF-8.
        MissingDependency: for parquet and arrow without pyarrow.
    """
    if not path.is_file():
        raise DataError("there is no such file", where=str(path))
    suffix = suffix_of(path)
    if suffix in READERS:
        return READERS[suffix](path)
    if not suffix and _begins_like_json(path):
        return iter_json(path)
    raise DataError(
        f"files that end in {path.suffix!r} are not read" if suffix else "its name has no ending",
        where=str(path),
        hint=did_you_mean(suffix, SUFFIXES) or f"Known endings: {', '.join(SUFFIXES)}.",
    )


def _begins_like_json(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(256).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")
