"""The run log: one JSON object a line, appended and flushed, readable while it grows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class EventLog:
    """Appends events to ``events.jsonl`` of a run directory.

    An event is ``{"time": unix seconds, "kind": str, …}``. A line is written with one system call, so a
    reader never sees half of it; a torn last line after a crash is skipped by :func:`read_events`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, kind: str, **fields: Any) -> None:
        """Append one event."""
        line = json.dumps({"time": round(time.time(), 3), "kind": kind, **fields}, ensure_ascii=False)
        with self.path.open("ab", buffering=0) as stream:
            stream.write(line.encode() + b"\n")


def read_events(path: Path, kind: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the events of a log in order, all or of one kind; nothing when the file is missing."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if kind is None or event.get("kind") == kind:
                yield event
