"""Folders that are whole or absent."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from danlu.core.console import note
from danlu.core.errors import RunError
from danlu.core.files import umask

SPARE = 1 << 26
"""Bytes asked for besides the weights: tokenizer, index, card."""


@contextmanager
def whole_folder(target: Path, *, marker: str) -> Iterator[Path]:
    """Yield a temporary sibling of ``target`` that takes its place when the block succeeds.

    Args:
        target: the folder to write.
        marker: a file that shows that an existing folder was written in this way and may be replaced.

    Raises:
        RunError: when ``target`` holds something else, or cannot be written (nothing half is left).
    """
    check_target(target, marker)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        temporary.chmod(0o777 & ~umask())
        yield temporary
        make_readable(temporary)
        _take_place(temporary, target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_target(target: Path, marker: str) -> None:
    """Refuse a folder that holds what this command did not write, before anything is computed for it.

    Raises:
        RunError: when it is a file, or holds something else.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise RunError("it is a file, not a folder", where=str(target), hint="Choose another folder.")
    if any(target.iterdir()) and not (target / marker).is_file():
        raise RunError(
            "the folder is not empty and was not written by this command of danlu",
            where=str(target),
            hint="Choose another folder, or empty this one.",
        )


def made_once(root: Path, name: str, write: Callable[[Path], None], *, message: str) -> Path:
    """The folder ``root/name``, written by ``write`` into a temporary folder the first time it is asked for.

    A second process that wants it at the same time waits for the first. A killed one leaves nothing that would be
    used, and what it left is removed the next time.

    Args:
        root: an existing folder of the cache.
        name: says everything that the content depends on.
        write: fills an existing empty folder.
        message: shown before the work begins.

    Raises:
        RunError: when the cache cannot be written.
    """
    folder = root / name
    if folder.is_dir():
        return folder
    with _only_one(root / f".{name}.lock"):
        if folder.is_dir():
            return folder
        for leftover in root.glob(f".{name}.*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        note(message)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=root))
        try:
            write(temporary)
            temporary.chmod(0o777 & ~umask())
            make_readable(temporary)
            temporary.rename(folder)
        except OSError as error:
            if not folder.is_dir():
                raise RunError(
                    f"the model cannot be prepared in the cache ({error.strerror or error})",
                    where=str(root),
                    hint="Free some space, or set DANLU_CACHE to a folder on another disk.",
                ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Hold an advisory lock, where the system has them; elsewhere the final rename alone decides."""
    try:
        import fcntl
    except ImportError:  # not a Unix system
        yield
        return
    handle = os.open(lock, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def make_readable(folder: Path) -> None:
    """Give files their usual permissions; safetensors writes files that only their owner can read."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask())


def _take_place(temporary: Path, target: Path) -> None:
    """Move the new folder in; the old one is deleted only when the new one is there."""
    if not target.exists():
        temporary.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    former = aside / target.name
    target.rename(former)
    try:
        temporary.rename(target)
    except OSError:
        former.rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def room_for(folder: Path, size: int, target: Path) -> None:
    """Refuse to begin when the disk has less than ``size`` bytes (and a little more) left.

    Raises:
        RunError: with both numbers.
    """
    free = shutil.disk_usage(folder).free
    if free < size + SPARE:
        raise RunError(
            f"the model needs {(size + SPARE) / 1e9:.1f} GB and {free / 1e9:.1f} GB are free",
            where=str(target),
            hint="Free some space or choose a folder on another disk (DANLU_CACHE for the cache); nothing was written.",
        )


def _unwritable(target: Path, error: OSError) -> RunError:
    return RunError(
        f"it cannot be written ({error.strerror or error})",
        where=str(target),
        hint="Free some space or choose another folder; what was there before is unchanged.",
    )
