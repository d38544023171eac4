"""The files of a benchmark: in a folder, a zip archive, a hub's dataset, or a single table."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from danlu.core.console import note
from danlu.core.errors import DataError
from danlu.core.files import sha256
from danlu.core.hub import Wanted, site_of, snapshot
from danlu.core.workspace import benchmarks_home, cache_folder
from danlu.data.sources.hub import is_hub_id
from danlu.evaluate.benchmarks.schema import Benchmark, fill

HUB = "hub"
"""What ``--data`` says to fetch the dataset that the benchmark names."""


@dataclass(frozen=True, slots=True)
class Folder:
    """Files by their names below a root.

    Attributes:
        root: the folder.
        names: relative names with slashes, sorted.
        place: as the user named it, for messages.
    """

    root: Path
    names: tuple[str, ...]
    place: str

    def find(self, patterns: tuple[str, ...], subject: str) -> list[Path]:
        """Files whose names end in the first pattern that fits any; sorted."""
        for pattern in patterns:
            wanted = fill(pattern, {"subject": subject})
            found = [name for name in self.names if fnmatchcase(name, wanted) or fnmatchcase(name, f"*/{wanted}")]
            if found:
                return [self.root / name for name in _shallowest(found)]
        return []


def _shallowest(names: list[str]) -> list[str]:
    """Of copies at several depths only the one nearest to the root."""
    depth = min(name.count("/") for name in names)
    return [name for name in names if name.count("/") == depth]


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file that questions were read from: name below the root, digest of its bytes."""

    name: str
    sha256: str


def records(folder: Folder, paths: list[Path]) -> list[FileRecord]:
    """Names and digests of files, sorted by name."""
    return [FileRecord(path.relative_to(folder.root).as_posix(), sha256(path)) for path in sorted(set(paths))]


def together(entries: list[FileRecord]) -> str:
    """One digest for several files, whatever their order."""
    lines = sorted(f"{entry.sha256}  {entry.name}\n" for entry in entries)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def open_files(benchmark: Benchmark, data: str | Path | None = None) -> Folder:
    """The files that ``--data`` names.

    Args:
        benchmark: whose files they are.
        data: a folder, a zip archive, a file, ``hub``, or the id of a hub's dataset. By default a folder or an
            archive with the benchmark's name in :func:`danlu.core.workspace.benchmarks_home`.

    Raises:
        DataError: when there is nothing, with the places that were looked at.
        HubError: when the hub does not give it.
    """
    path = Path(data).expanduser() if data is not None else _usual(benchmark)
    if path.is_dir():
        return Folder(path, _names(path), str(path))
    if path.suffix == ".zip" and path.is_file():
        root = _unpacked(path)
        return Folder(root, _names(root), str(path))
    if path.is_file():
        return Folder(path.parent, (path.name,), str(path))
    repository = benchmark.hub if str(data) == HUB else str(data)
    if data is None or not is_hub_id(repository):
        raise _absent(benchmark, path)
    note(f"{benchmark.name}: fetching {repository} ({benchmark.licence or 'licence unknown'})")
    root = snapshot(site_of(None), Wanted(repository, "dataset"))
    return Folder(root, _names(root), repository)


def _usual(benchmark: Benchmark) -> Path:
    folder = benchmarks_home() / benchmark.name
    archive = folder.with_name(f"{benchmark.name}.zip")
    return archive if archive.is_file() and not folder.is_dir() else folder


def _absent(benchmark: Benchmark, path: Path) -> DataError:
    fetch = " or --data hub" if benchmark.hub else ""
    return DataError(
        f"the questions of {benchmark.name} are not there",
        where=str(path),
        hint=f"They are not part of danlu ({benchmark.source}; {benchmark.licence}). "
        f"Use --data FOLDER or ARCHIVE.zip{fetch}, or put them into {benchmarks_home() / benchmark.name}.",
    )


def _names(root: Path) -> tuple[str, ...]:
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return tuple(sorted(name.as_posix() for name in found if not any(part.startswith(".") for part in name.parts)))


def _unpacked(archive: Path) -> Path:
    """The archive's files in the cache, unpacked once for each content."""
    target = cache_folder("benchmarks") / sha256(archive)[:16]
    if target.is_dir():
        return target
    temporary = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=target.parent))
    try:
        with zipfile.ZipFile(archive) as content:
            content.extractall(temporary)  # names that lead outside are made harmless by zipfile itself
        temporary.rename(target)
    except zipfile.BadZipFile as error:
        raise DataError(f"it is no zip archive ({error})", where=str(archive)) from error
    except OSError:
        if not target.is_dir():  # another process may have been quicker
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
