"""Why a worker ended, and which of several failures was the first."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from danlu.core.errors import DanluError, RunError

TAIL = 12
"""Lines of a log that are shown."""

LOST = "the connection to another process of the training is lost"
LOST_PEER = (LOST, "connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited")
"""Words in errors of a process that lost another one: it is not the one that failed."""


class ForeignError(DanluError):
    """An error of a worker, in its own words and with its exit code."""

    def __init__(self, text: str, exit_code: int) -> None:
        self.what, self.where, self.hint = text, None, None
        self.exit_code = exit_code
        Exception.__init__(self, text)

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True, slots=True)
class Failure:
    """How one worker ended.

    Attributes:
        rank: of the worker.
        code: its exit code; below 0 the signal that ended it.
        text: its error in one paragraph, if it could still say one.
        known: whether that is an error which danlu raises on purpose.
        log: the file with its output.
    """

    rank: int
    code: int
    text: str
    known: bool
    log: Path

    def error(self) -> DanluError:
        """What the launcher raises."""
        if self.known:
            return ForeignError(self.text, self.code)
        reason = f"was ended by {signal.Signals(-self.code).name}" if self.code < 0 else f"ended with code {self.code}"
        if self.code == -signal.SIGKILL:
            reason += " (by hand, or because memory ran out)"
        tail = "\n".join(f"  {line}" for line in _tail(self.log))
        return RunError(
            f"rank {self.rank} {reason}, and the whole training with it",
            where=str(self.log),
            hint=f"Start the same command again to go on from the last checkpoint. The end of its log:\n{tail}",
        )


def failure_of(rank: int, code: int, error_file: Path, log: Path) -> Failure:
    """Read what a worker left."""
    try:
        left = json.loads(error_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        left = {}
    return Failure(rank, code, str(left.get("text", "")), bool(left.get("known")), log)


def root_cause(failures: Sequence[Failure]) -> Failure | None:
    """The failure that the others follow from: a signal, then an error of its own, then a lost connection."""
    order = sorted(failures, key=lambda item: (item.code >= 0, lost_peer(item.text), not item.known, item.rank))
    return order[0] if order else None


def lost_peer(text: str) -> bool:
    """Whether an error says that another process is gone."""
    return any(words in text.lower() for words in LOST_PEER)


def leave(error_file: str | None, text: str, *, known: bool) -> None:
    """Write an error where the launcher looks for it."""
    if error_file:
        Path(error_file).write_text(json.dumps({"text": text, "known": known}), encoding="utf-8")


def _tail(log: Path) -> list[str]:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.strip()][-TAIL:] or ["(it printed nothing)"]
