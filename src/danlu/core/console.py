"""What the terminal shows: rich on a terminal, one plain line a step elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.theme import Theme

from danlu.core.ranks import is_heard

THEME = Theme({"accent": "#d9694f", "quiet": "dim", "good": "green", "bad": "red"})

out = Console(theme=THEME, highlight=False, emoji=False)
"""Results: what a command was asked for (standard output)."""

err = Console(theme=THEME, highlight=False, emoji=False, stderr=True)
"""Everything else: progress, notes, warnings, errors (standard error)."""


def note(message: str) -> None:
    """A line about what is going on; of several processes that train together, the first one says it."""
    if is_heard():
        err.print(message, markup=False, soft_wrap=True)


def warn(message: str) -> None:
    """A line about something the user may not want; said once, as :func:`note`."""
    if is_heard():
        err.print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)


@contextmanager
def progress(label: str, total: int | None) -> Iterator[ProgressLine]:
    """A live bar on a terminal; elsewhere a line at each tenth of the way."""
    line = ProgressLine(label, total)
    with line:
        yield line


class ProgressLine:
    """One labelled counter. Call :meth:`advance` as work is done."""

    def __init__(self, label: str, total: int | None) -> None:
        self.label, self.total, self.done = label, total, 0
        self._told = 0
        self._bar: Progress | None = None
        if err.is_terminal and is_heard():
            self._bar = Progress(
                TextColumn("[accent]{task.description}"),
                BarColumn(complete_style="#d9694f", finished_style="#d9694f"),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
                TextColumn("{task.fields[detail]}", style="dim"),
                console=err,
            )
            self._task = self._bar.add_task(label, total=total, detail="")

    def __enter__(self) -> ProgressLine:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, count: int = 1, detail: str = "") -> None:
        """Count ``count`` more units as done; ``detail`` is shown beside the bar."""
        self.done += count
        if self._bar:
            self._bar.update(self._task, completed=self.done, detail=detail)
        elif is_heard() and self.total and self.done * 10 // self.total > self._told:
            self._told = self.done * 10 // self.total
            err.print(f"{self.label} {self.done}/{self.total} {detail}".rstrip(), markup=False)
