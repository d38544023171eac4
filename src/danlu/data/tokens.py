"""Tokenised rows on disk: flat memory-mapped arrays, written once, shared by every run with the same content."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from danlu.core.errors import RunError
from danlu.core.files import write_json
from danlu.data.templates import Encoded

FORMAT = 5
"""Raised whenever encoding changes; older caches are then not found."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to learn from.

    Attributes:
        row: number of the row it came from.
        parts: one sequence; or a prompt and the answers that each continue it.
        value: what else the row says: the margin of a pair, 1 or 0 for an answer that is wanted or not.
    """

    row: int
    parts: tuple[Encoded, ...]
    value: float = math.nan


class TokenStore:
    """Items (one sequence each, or a prompt with its answers) of token ids with a loss mask, memory-mapped.

    Args:
        folder: made by :func:`write_store`.

    Attributes:
        ids: int32, all sequences end to end.
        trained: bool, as long as ``ids``.
        width: sequences in each of the n items; those of an item follow each other.
        bounds: int64, n · width + 1 places where sequences begin and end.
        rows: int64, for each item the number of the row it came from.
        values: float32, for each item its :attr:`Item.value`.
        keys: uint64, :func:`danlu.data.schema.row_key` of each row.
        report: what :class:`danlu.data.encode.EncodingReport` said, and anything else the writer added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        self.bounds: NDArray[np.int64] = np.load(folder / "bounds.npy")
        self.width: int = self.report.get("width", 1)
        self.rows: NDArray[np.int64] = np.load(folder / "rows.npy")
        self.values: NDArray[np.float32] = np.load(folder / "values.npy")
        self.keys: NDArray[np.uint64] = np.load(folder / "keys.npy")
        self.ids: NDArray[np.int32] = _mapped(folder / "ids.bin", np.int32)
        self.trained: NDArray[np.bool_] = _mapped(folder / "trained.bin", np.bool_)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        start, end = self.bounds[index * self.width], self.bounds[(index + 1) * self.width]
        return self.ids[start:end], self.trained[start:end]

    def parts(self, index: int) -> list[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
        """The sequences of an item."""
        cuts = self.bounds[index * self.width : (index + 1) * self.width + 1]
        return [(self.ids[start:end], self.trained[start:end]) for start, end in zip(cuts[:-1], cuts[1:])]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each item."""
        return np.diff(self.bounds[:: self.width])


def _mapped(path: Path, kind: type[np.generic]) -> NDArray[Any]:
    if path.stat().st_size == 0:
        return np.zeros(0, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r")


def write_store(folder: Path, items: Iterable[Item], keys: Iterable[int], report: Any) -> TokenStore:
    """Write items as they come and make the folder appear at once when all are there.

    Args:
        folder: where the store will be; nothing is there before it is whole.
        items: all with the same number of parts.
        keys: the content hash of each row, read after ``items`` is exhausted.
        report: an object with ``as_dict()``, read after ``items`` is exhausted.

    Raises:
        RunError: when the disk is full.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        bounds, rows, values, width = [0], [], [], 1
        with (work / "ids.bin").open("wb") as ids, (work / "trained.bin").open("wb") as trained:
            for item in items:
                width = len(item.parts)
                for encoded in item.parts:
                    ids.write(np.asarray(encoded.ids, dtype=np.int32).tobytes())
                    trained.write(np.asarray(encoded.trained, dtype=np.bool_).tobytes())
                    bounds.append(bounds[-1] + len(encoded.ids))
                rows.append(item.row)
                values.append(item.value)
        np.save(work / "bounds.npy", np.asarray(bounds, dtype=np.int64))
        np.save(work / "rows.npy", np.asarray(rows, dtype=np.int64))
        np.save(work / "values.npy", np.asarray(values, dtype=np.float32))
        np.save(work / "keys.npy", np.fromiter(keys, dtype=np.uint64))
        write_json(work / "report.json", {**report.as_dict(), "width": width})
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
