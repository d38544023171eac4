"""Rows of datasets, ready for tokenising, with everything that was left out named."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from danlu.core.errors import DataError, UsageError, did_you_mean
from danlu.core.files import sha1, sha256
from danlu.data.catalog import DatasetDir, Source, resolve
from danlu.data.formats import FORMATS
from danlu.data.formats.detect import detect
from danlu.data.formats.shape import Format, Shape
from danlu.data.mixing import Strategy, mix, sample
from danlu.data.rows import BadRow, RawRow, RowError
from danlu.data.schema import Document, Example, Preference, Row, UnpairedPreference
from danlu.data.sources import iter_raw

HEAD = 50  # rows whose columns tell the shape of a file

_PAIRS = "pairs of a better and a worse answer"

KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "pt": ((Document,), "plain text"),
    "sft": ((Example,), "conversations"),
    "ppo": ((Example, Preference), "conversations"),
    "grpo": ((Example, Preference), "conversations"),
    "rm": ((Preference,), _PAIRS),
    "dpo": ((Preference,), _PAIRS),
    "ipo": ((Preference,), _PAIRS),
    "orpo": ((Preference,), _PAIRS),
    "simpo": ((Preference,), _PAIRS),
    "kto": ((UnpairedPreference, Preference), "answers labelled true or false"),
}
"""Which rows a stage trains on. A pair is a prompt as well, and a wanted and an unwanted answer."""

_WORTH_A_WORD = ("system", "history", "tools", "chosen", "rejected", "kto_tag")


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What was read of one dataset.

    Attributes:
        name: as the user wrote it.
        path: file, folder or hub id.
        sha256: digest of the file; of the files' digests when there are several.
        rows: usable rows taken.
        bad: rows that could not be read.
        warnings: what the user may not expect.
    """

    name: str
    path: str
    sha256: str
    rows: int
    bad: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadedRows:
    """Usable rows in training order, unusable rows, and the datasets they came from."""

    rows: list[Row]
    bad: list[BadRow]
    sources: list[SourceInfo]


def load_rows(
    names: str | Sequence[str],
    *,
    dataset_dir: DatasetDir = "data",
    max_samples: int | None = None,
    on_bad_row: Literal["skip", "error"] = "skip",
    stage: str | None = None,
    separator: str = "\n",
    mix_strategy: Strategy = "concat",
    interleave_probs: Sequence[float] = (),
    seed: int = 42,
) -> LoadedRows:
    """Read datasets and mix them.

    Args:
        names: names, files, folders, patterns or hub ids; a list, or one text with commas.
        dataset_dir: folder with dataset_info.json; see :data:`danlu.data.catalog.DatasetDir`.
        max_samples: only the first so many rows of each dataset are looked at (unusable ones count).
        on_bad_row: ``error`` stops at the first row that cannot be used.
        stage: rows that this stage cannot train on count as unusable; None takes every kind.
        separator: between instruction and input of alpaca rows; "" in ChatGLM-Efficient-Tuning.
        mix_strategy: how datasets are joined; see :func:`danlu.data.mixing.mix`.
        interleave_probs: weight of each dataset when interleaving.
        seed: of draws and mixing.

    Raises:
        DataError: for an unknown name, a file that cannot be read, or a dataset without one usable row.
        UsageError: when no dataset is named.
    """
    wanted = names.split(",") if isinstance(names, str) else list(names)
    wanted = [name.strip() for name in wanted if name.strip()]
    if not wanted:
        raise UsageError("no dataset is named", hint="Give a name, a file, a folder or a hub id.")
    groups: list[list[Row]] = []
    bad: list[BadRow] = []
    sources: list[SourceInfo] = []
    with _no_collector():
        for name in wanted:
            source = resolve(name, dataset_dir)
            rows, broken, info = _read(
                source,
                max_samples=max_samples,
                on_bad_row=on_bad_row,
                stage=stage,
                separator=separator,
                seed=seed,
            )
            groups.append(rows)
            bad += broken
            sources.append(info)
    return LoadedRows(mix(groups, mix_strategy, interleave_probs, seed=seed), bad, sources)


def load_dataset(name: str, **options: object) -> list[Row]:
    """The usable rows of one dataset; options as in :func:`load_rows`."""
    return load_rows([name], **options).rows  # type: ignore[arg-type]


@contextmanager
def _no_collector() -> Iterator[None]:
    """Rows hold no cycles: looking for some among millions of new objects costs a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(
    source: Source,
    *,
    max_samples: int | None,
    on_bad_row: str,
    stage: str | None,
    separator: str,
    seed: int,
) -> tuple[list[Row], list[BadRow], SourceInfo]:
    files = source.files()
    limit = None if source.num_samples else max_samples
    rows: list[Row] = []
    bad: list[BadRow] = []
    ignored: set[str] = set()
    for item in read_files(files, source, separator, limit, ignored, stage):
        row = item if stage is None else of_stage(item, stage)
        if not isinstance(row, BadRow):
            rows.append(row)
            continue
        if on_bad_row == "error":
            raise DataError(row.message, where=row.place, hint="Repair it, or skip such rows: on_bad_row=skip.")
        bad.append(row)
    if not rows:
        raise _no_rows(source, bad, stage)
    count = len(rows)
    if source.num_samples:
        rows = sample(rows, source.num_samples, seed=seed)[:max_samples]
    warnings = (*source.warnings, *checksum_warnings(source, files), *column_warnings(source, ignored))
    if source.num_samples and source.num_samples > count:
        warnings += (f"num_samples is {source.num_samples}, there are {count} rows: some come several times",)
    path = source.path if len(files) != 1 else str(files[0])
    return rows, bad, SourceInfo(source.name, path, digest(files), len(rows), len(bad), warnings)


def read_files(
    files: Iterable[Path],
    source: Source,
    separator: str,
    limit: int | None = None,
    ignored: set[str] | None = None,
    stage: str | None = None,
) -> Iterator[Row | BadRow]:
    """Yield the rows of a source's files in order, at most ``limit`` of them.

    Args:
        files: what to read.
        source: how to read it; its shape is found out for each file when it has none.
        separator: between instruction and input.
        limit: rows to look at.
        ignored: collects columns that hold something the shape does not name.
        stage: what the rows are read for, if that is known.
    """
    left = limit
    for path in files:
        raw = iter_raw(path)
        head = list(islice(raw, HEAD if left is None else min(HEAD, left)))
        shape = shape_of(head, source, path, separator, stage)
        if ignored is not None and source.described:
            ignored |= unnamed_columns(head, shape)
        layout: Format = FORMATS[shape.format]
        for item in islice(chain(head, raw), left):
            if left is not None:
                left -= 1
            yield _parse(item, shape, layout)
        if left == 0:
            return


def _parse(item: RawRow | BadRow, shape: Shape, layout: Format) -> Row | BadRow:
    if isinstance(item, BadRow):
        return item
    try:
        return layout.read(item.value, shape, item.origin)
    except RowError as error:
        return BadRow(item.origin, error.field, error.message, error.prompt)


def shape_of(
    head: Sequence[RawRow | BadRow], source: Source, path: Path, separator: str, stage: str | None = None
) -> Shape:
    """The shape of a source, or the one that the first rows of a file show to somebody who reads them for a stage.

    Raises:
        DataError: when nothing describes the file and its columns fit no format.
    """
    if source.shape is not None:
        return replace(source.shape, separator=separator)
    values = [item.value for item in head if isinstance(item, RawRow)]
    if not head:
        raise DataError("there is no row in this file", where=str(path))
    if not values:
        return Shape(separator=separator)  # every row so far is unreadable and will be named
    return detect(values, where=str(path), separator=separator, labelled=stage == "kto")


def known_stage(stage: str) -> str:
    """The stage itself.

    Raises:
        UsageError: when there is no such stage.
    """
    if stage not in KINDS:
        hint = did_you_mean(stage, KINDS) or f"Known: {', '.join(KINDS)}."
        raise UsageError(f"there is no stage {stage!r}", where="stage", hint=hint)
    return stage


def of_stage(row: Row | BadRow, stage: str) -> Row | BadRow:
    """The row if ``stage`` can train on it, else why not; ppo and grpo need no answer."""
    kinds, words = KINDS[stage]
    if isinstance(row, BadRow):
        return Example(row.prompt, row.origin) if row.prompt is not None and stage in ("ppo", "grpo") else row
    if isinstance(row, kinds):
        return row
    found = next(what for others, what in KINDS.values() if isinstance(row, others[0]))
    return BadRow(row.origin, "", f"stage {stage} trains on {words}, this row is for {found}")


def digest(files: Sequence[Path]) -> str:
    """SHA-256 of a file's bytes; of the list of digests for several files."""
    if len(files) == 1:
        return sha256(files[0])
    lines = "".join(f"{sha256(path)}  {path.name}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def checksum_warnings(source: Source, files: Sequence[Path]) -> tuple[str, ...]:
    """A warning when the file is not the one whose checksum dataset_info.json states."""
    if not source.sha1:
        return ()
    if len(files) != 1:
        return (f"file_sha1 is for one file, {source.path} has {len(files)}: not checked",)
    found = sha1(files[0])
    if found == source.sha1.strip().lower():
        return ()
    return (
        f"checksum of {files[0]} differs: dataset_info.json states {source.sha1}, the file has {found}; "
        "it may have been changed or saved with other line ends",
    )


def unnamed_columns(head: Sequence[RawRow | BadRow], shape: Shape) -> set[str]:
    """Columns with a meaning and values that the shape does not name."""
    named = shape.columns.named()
    filled = {key for item in head if isinstance(item, RawRow) for key, value in item.value.items() if value}
    return {key for key in _WORTH_A_WORD if key in filled and key not in named}


def column_warnings(source: Source, ignored: set[str]) -> tuple[str, ...]:
    """Warnings about columns that are in the rows and not read."""
    return tuple(
        f"column {name!r} is not read: columns of {source.name} in dataset_info.json does not name it"
        for name in sorted(ignored)
    )


def _no_rows(source: Source, bad: Sequence[BadRow], stage: str | None) -> DataError:
    if not bad:
        return DataError("there is no row in it", where=source.path)
    return DataError(
        f"none of its {len(bad)} rows can be used; the first: {bad[0].message}",
        where=bad[0].place,
        hint=f"See them all with: danlu data check {source.name}" + (f" --stage {stage}" if stage else ""),
    )
