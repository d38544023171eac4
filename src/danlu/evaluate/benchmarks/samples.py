"""``samples.jsonl``: a line for every question, written as it is answered, kept over a kill.

A row is found again by its ``key``: a digest of the model, the protocol and the prompt. So a changed model, template,
protocol or question is answered again, and the same command goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from danlu.core.console import note, warn
from danlu.core.errors import RunError
from danlu.core.files import replacing
from danlu.evaluate.lines import append, encoded

FILE_NAME = "samples.jsonl"


class SampleFile:
    """The answers of one evaluation, open for appending.

    Args:
        path: the file; its folder is made if needed.
        keys: of the questions that are asked. Other rows that the file has are set aside as
            ``samples.previous.jsonl``.

    Raises:
        RunError: when it cannot be read or written.
    """

    def __init__(self, path: Path, keys: Collection[str]) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        self._order = {key: place for place, key in enumerate(keys)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            raw = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise RunError(f"cannot read it: {error.strerror}", where=str(path)) from error
        if raw:
            self._take_up(raw)

    def _take_up(self, raw: bytes) -> None:
        others, torn = [], 0
        for line in filter(None, raw.split(b"\n")):
            row = _decoded(line)
            if row is None:
                torn += 1
            elif row["key"] in self._order:
                self.rows[row["key"]] = row
            else:
                others.append(line)
        if others:
            aside = self.path.with_name(f"{self.path.stem}.previous{self.path.suffix}")
            with replacing(aside) as temporary:
                temporary.write_bytes(b"\n".join(others) + b"\n")
            warn(
                f"{self.path.name} has {len(others)} answers of another model, protocol, split or selection; "
                f"they are now in {aside.name}"
            )
        if torn:
            warn(f"{self.path.name}: {torn} lines that were cut off are dropped; their questions are asked again")
        self._rewrite()
        if finished := sum(not row.get("partial") for row in self.rows.values()):
            note(f"{self.path.name}: {finished} of {len(self._order)} answers are kept")

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one row; it survives a kill from the moment this returns. A later row of a key replaces the first.

        Raises:
            RunError: when the disk is full.
        """
        append(self.path, row)
        self.rows[row["key"]] = dict(row)

    def finish(self) -> list[dict[str, Any]]:
        """Put the rows into the order of the questions, in one step, and return them."""
        self._rewrite()
        return list(self.rows.values())

    def _rewrite(self) -> None:
        self.rows = dict(sorted(self.rows.items(), key=lambda entry: self._order[entry[0]]))
        with replacing(self.path) as temporary:
            temporary.write_bytes(b"".join(encoded(row) + b"\n" for row in self.rows.values()))


def _decoded(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("key"), str) else None
