"""Which files a path, folder or pattern stands for."""

from __future__ import annotations

import difflib
import glob
from pathlib import Path

from danlu.core.errors import DataError

SUFFIXES = ("json", "jsonl", "ndjson", "csv", "tsv", "parquet", "arrow", "txt")
NOT_ROWS = frozenset({"dataset_info.json", "dataset_infos.json", "state.json"})


def is_data_file(name: str) -> bool:
    """Whether a file of this name can hold rows."""
    path = Path(name)
    return suffix_of(path) in SUFFIXES and path.name not in NOT_ROWS and not path.name.startswith(".")


def suffix_of(path: Path) -> str:
    """The ending of a file name in lower case, without its dot."""
    return path.suffix.lower().removeprefix(".")


def looks_like_path(name: str) -> bool:
    """Whether a name can only be meant as a path: a pattern, a known ending, a leading dot or slash."""
    known = Path(name).suffix.lower().removeprefix(".") in SUFFIXES
    return known or glob.has_magic(name) or name.startswith((".", "/", "~")) or "\\" in name


def find_files(name: str, base: Path | None = None) -> list[Path]:
    """The data files that ``name`` stands for: a file, the files of a folder or of a pattern, sorted.

    Args:
        name: path or pattern; looked for in the working directory, then in ``base``.
        base: second folder to look in.

    Raises:
        DataError: when there is nothing, naming the nearest files.
    """
    for folder in (Path(), base):
        if folder is None:
            continue
        path = (folder / name).expanduser()
        if path.is_file():
            return [path]
        if path.is_dir():
            return _files_of(path)
        if glob.has_magic(name):
            found = sorted(Path(match) for match in glob.iglob(str(path), recursive=True))  # noqa: PTH207
            if files := [match for match in found if match.is_file() and is_data_file(match.name)]:
                return files
    raise _missing(name, base)


def _files_of(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.is_file() and is_data_file(path.name))
    if not found:
        visible = (path for path in folder.rglob("*") if not any(part.startswith(".") for part in path.parts[1:]))
        found = sorted(path for path in visible if path.is_file() and is_data_file(path.name))
    if not found:
        raise DataError(
            "there is no data file in this folder",
            where=str(folder),
            hint=f"Files with these endings are read: {', '.join(SUFFIXES)}.",
        )
    return found


def _missing(name: str, base: Path | None) -> DataError:
    if glob.has_magic(name):
        return DataError("no data file matches this pattern", where=name, hint="Check the folder and the ending.")
    path = Path(name).expanduser()
    folder = path.parent
    if not folder.is_dir():
        near = [parent for parent in path.parents if parent.is_dir()]
        hint = f"The folder {folder} does not exist" + (f", {near[0]} does." if near else ".")
        return DataError("there is no such file", where=name, hint=hint)
    siblings = [item.name for item in folder.iterdir() if item.is_dir() or is_data_file(item.name)]
    if base is not None and base.is_dir() and base != folder:
        siblings += [item.name for item in base.iterdir() if is_data_file(item.name)]
    close = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(close)}?" if close else "Check the path; relative paths start here."
    return DataError("there is no such file", where=name, hint=hint)
