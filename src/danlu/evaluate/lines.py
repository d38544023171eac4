"""Answers as lines of JSON that survive a kill."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danlu.core.errors import RunError


def encoded(row: Mapping[str, Any]) -> bytes:
    """A row as one line of UTF-8, without its end."""
    try:
        return json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair: only an escape can carry it
        return json.dumps(row).encode("ascii")


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line to a file; it survives a kill from the moment this returns.

    Raises:
        RunError: when the disk is full.
    """
    try:
        with path.open("ab", buffering=0) as stream:
            stream.write(encoded(row) + b"\n")
    except OSError as error:
        raise RunError(
            f"cannot write it: {error.strerror or error}",
            where=str(path),
            hint="Free some space and run the same command again; finished answers are kept.",
        ) from error
