"""Tokenised rows on disk: flat memory-mapped arrays, written once, shared by every run with the same content."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from danlu.core.errors import RunError
from danlu.core.files import write_json
from danlu.data.templates import Encoded

FORMAT = 2
"""Raised whenever encoding changes; older caches are then not found."""


class TokenStore:
    """Sequences of token ids with a loss mask, memory-mapped.

    Args:
        folder: made by :func:`write_store`.

    Attributes:
        ids: int32, all sequences end to end.
        trained: bool, as long as ``ids``.
        bounds: int64, n + 1 places where sequences begin and end.
        rows: int64, for each sequence the number of the row it came from.
        keys: uint64, :func:`danlu.data.schema.row_key` of each row.
        report: what :class:`danlu.data.encode.EncodingReport` said, and anything else the writer added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        self.bounds: NDArray[np.int64] = np.load(folder / "bounds.npy")
        self.rows: NDArray[np.int64] = np.load(folder / "rows.npy")
        self.keys: NDArray[np.uint64] = np.load(folder / "keys.npy")
        self.ids: NDArray[np.int32] = _mapped(folder / "ids.bin", np.int32)
        self.trained: NDArray[np.bool_] = _mapped(folder / "trained.bin", np.bool_)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        start, end = self.bounds[index], self.bounds[index + 1]
        return self.ids[start:end], self.trained[start:end]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence."""
        return np.diff(self.bounds)


def _mapped(path: Path, kind: type[np.generic]) -> NDArray[Any]:
    if path.stat().st_size == 0:
        return np.zeros(0, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r")


def write_store(folder: Path, sequences: Iterable[tuple[int, Encoded]], keys: Iterable[int], report: Any) -> TokenStore:
    """Write sequences as they come and make the folder appear at once when all are there.

    Args:
        folder: where the store will be; nothing is there before it is whole.
        sequences: ``(row number, ids and mask)``.
        keys: the content hash of each row, read after ``sequences`` is exhausted.
        report: an object with ``as_dict()``, read after ``sequences`` is exhausted.

    Raises:
        RunError: when the disk is full.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        bounds, rows = [0], []
        with (work / "ids.bin").open("wb") as ids, (work / "trained.bin").open("wb") as trained:
            for row, encoded in sequences:
                ids.write(np.asarray(encoded.ids, dtype=np.int32).tobytes())
                trained.write(np.asarray(encoded.trained, dtype=np.bool_).tobytes())
                bounds.append(bounds[-1] + len(encoded.ids))
                rows.append(row)
        np.save(work / "bounds.npy", np.asarray(bounds, dtype=np.int64))
        np.save(work / "rows.npy", np.asarray(rows, dtype=np.int64))
        np.save(work / "keys.npy", np.fromiter(keys, dtype=np.uint64))
        write_json(work / "report.json", report.as_dict())
        shutil.rmtree(folder, ignore_errors=True)
        work.replace(folder)
    except OSError as error:
        if not (folder / "report.json").exists():  # else another process finished the same store first
            raise RunError(
                f"the tokenised rows cannot be written: {error.strerror or error}",
                where=str(folder),
                hint="Free some space, or point DANLU_CACHE to another disk.",
            ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return TokenStore(folder)
