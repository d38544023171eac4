"""Several jobs at a time, their results as they finish."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


class Crew(Generic[JobT, ResultT]):
    """Threads that work on jobs. They end with the process, so that Ctrl-C need not wait for an answer.

    Args:
        work: does a job; may be called by several threads at once.
        size: most jobs at a time.
    """

    def __init__(self, work: Callable[[JobT], ResultT], size: int) -> None:
        self._work, self.size = work, size
        self._jobs: queue.SimpleQueue[JobT | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[JobT, ResultT | Exception]] = queue.SimpleQueue()
        self._threads = 0
        self.waiting = 0

    @property
    def full(self) -> bool:
        """Whether as many jobs as threads are under way."""
        return self.waiting >= self.size

    def give(self, job: JobT) -> None:
        """Begin a job."""
        self.waiting += 1
        if self._threads < min(self.waiting, self.size):
            self._threads += 1
            threading.Thread(target=self._serve, daemon=True).start()
        self._jobs.put(job)

    def take(self) -> tuple[JobT, ResultT | Exception]:
        """The next job that is finished, and its result or why it has none."""
        finished = self._results.get()
        self.waiting -= 1
        return finished

    def all(self) -> Iterator[tuple[JobT, ResultT | Exception]]:
        """What is still under way, as it finishes."""
        while self.waiting:
            yield self.take()

    def dismiss(self) -> None:
        """Let the threads go when they have finished what they do."""
        for _ in range(self._threads):
            self._jobs.put(None)
        self._threads = 0

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                result: ResultT | Exception = self._work(job)
            except Exception as error:
                result = error
            self._results.put((job, result))
