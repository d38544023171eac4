"""Files that are whole or absent: atomic writes, digests, JSON in the project's one style."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from danlu.core.errors import RunError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; on success it takes the place of ``path`` in one step.

    Raises:
        RunError: when the disk is full or the folder cannot be written; ``path`` is then untouched.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o666 & ~umask())
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise RunError(
            f"cannot write it: {error.strerror or error}",
            where=str(path),
            hint="Free some space or choose another folder; what was there before is unchanged.",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def umask() -> int:
    """The permissions that this process withholds from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def expanded(path: str | Path) -> Path:
    """A path with ``~`` replaced; as it is where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with Unix line ends, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any, *, indent: int = 2, sort_keys: bool = False) -> None:
    """Write ``value`` as readable JSON (Chinese stays Chinese) with a final newline, atomically."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, sort_keys=sort_keys)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON file.

    Raises:
        RunError: when it is missing or broken.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError("there is no such file", where=str(path)) from error
    except ValueError as error:
        raise RunError(f"it is not valid JSON ({error})", where=str(path)) from error


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    return _digest(path, "sha256")


def sha1(path: Path) -> str:
    """Hex SHA-1 of a file, as ``file_sha1`` of a dataset_info.json states it."""
    return _digest(path, "sha1")


def _digest(path: Path, name: str) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, name).hexdigest()
