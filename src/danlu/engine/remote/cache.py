"""Answers that were paid for once: a SQLite file in the cache folder, keyed by everything that was asked.

Several processes may use it at once (SQLite locks the file). It keeps answers only: no key, no address with a
password. The oldest ones go when it grows above its limit.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from danlu.core.console import warn
from danlu.core.workspace import cache_folder

LIMIT = 2**30
"""Bytes of answers that are kept."""

LOOK = 256
"""The size is looked at after so many new answers."""

TABLE = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, answer TEXT NOT NULL, size INTEGER NOT NULL, used REAL NOT NULL
) WITHOUT ROWID
"""


def answer_key(url: str, body: Mapping[str, Any]) -> str:
    """Hash of an address and everything that is sent to it."""
    text = json.dumps([url, body], ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class AnswerCache:
    """Answers by :func:`answer_key`. A file that cannot be used is said once, and then nothing is remembered.

    Args:
        path: the SQLite file; ``answers/answers.sqlite`` in the cache folder by default.
        limit: most bytes of answers.
    """

    def __init__(self, path: Path | None = None, limit: int = LIMIT) -> None:
        self.path = path or cache_folder("answers") / "answers.sqlite"
        self.limit = limit
        self._lock = threading.Lock()
        self._new = 0
        self._database: sqlite3.Connection | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
            self._database.execute(TABLE)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def get(self, key: str) -> Any:
        """The answer, or None."""
        found = self._run("UPDATE answers SET used = ? WHERE key = ? RETURNING answer", (time.time(), key))
        return json.loads(found[0][0]) if found else None

    def put(self, key: str, model: str, answer: Any) -> None:
        """Keep an answer; it survives a kill from the moment this returns."""
        text = json.dumps(answer, ensure_ascii=True)
        row = (key, model, text, len(text), time.time())
        self._run("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", row)
        self._new += 1
        if self._new % LOOK == 0 or len(text) > self.limit:
            self.prune()

    def size(self) -> tuple[int, int]:
        """How many answers there are, and their bytes."""
        found = self._run("SELECT count(*), coalesce(sum(size), 0) FROM answers", ())
        return (found[0][0], found[0][1]) if found else (0, 0)

    def prune(self, limit: int | None = None) -> int:
        """Forget the answers that were not used for longest until at most ``limit`` bytes are left; how many."""
        kept = self.limit if limit is None else limit
        gone = self._run(
            "DELETE FROM answers WHERE key IN (SELECT key FROM (SELECT key, sum(size) OVER "
            "(ORDER BY used DESC, key ROWS UNBOUNDED PRECEDING) AS total FROM answers) WHERE total > ?) RETURNING 1",
            (kept,),
        )
        return len(gone)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._database is not None:
                self._database.close()
            self._database = None

    def _run(self, statement: str, values: tuple[Any, ...]) -> list[Any]:
        with self._lock:
            if self._database is None:
                return []
            try:
                with closing(self._database.execute(statement, values)) as cursor:
                    return cursor.fetchall()
            except sqlite3.Error as error:
                self._give_up(error)
                return []

    def _give_up(self, error: Exception) -> None:
        warn(f"{self.path}: answers are not remembered ({error}); delete the file if it is damaged")
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
        self._database = None
