"""Starts one worker for each process with the machinery of torchrun, watches them, and ends them together.

A worker is started with the environment that torchrun gives (RANK, WORLD_SIZE, MASTER_ADDR, …) in a session of its
own, so that Ctrl-C reaches it once, through the launcher. What it prints goes to logs/rank-N.log.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from danlu.core.errors import RunError
from danlu.core.ranks import OWN_LOG, Ranks
from danlu.tune.parallel.failure import Failure, failure_of, root_cause
from danlu.tune.parallel.meeting import Meeting
from danlu.tune.parallel.start import VARIABLE, Start

WORKER = "danlu.verbs.worker"
PERIOD = 0.1
"""Seconds between two looks at the workers."""

GRACE = 2.0
"""Seconds for the others to end by themselves after one has failed."""


class Launch:
    """The workers of one machine.

    Args:
        place: of the first of them.
        start: what they are to do.
        meeting: the store that they, and other machines, find each other by.
        address: of the machine that holds it.
        logs: folder for what they print.
    """

    def __init__(self, place: Ranks, start: Start, meeting: Meeting, address: str, logs: Path) -> None:
        self.place, self.start, self.meeting, self.address, self.logs = place, start, meeting, address, logs
        self.asked = 0

    def run(self) -> Failure | None:
        """Start the workers, wait for all of them, and leave none behind.

        Returns:
            None when all are done, else why the training ended.

        Raises:
            KeyboardInterrupt: when it was asked twice to stop.
            RunError: when another machine failed.
        """
        with tempfile.TemporaryDirectory(prefix="danlu-") as errors:
            with _quiet_torch(), self._signals():
                context = self._context(Path(errors))
                context.start()
                self._listen()
                try:
                    codes = self._watch(context.subprocess_handlers)
                finally:
                    context.close(signal.SIGKILL, timeout=5)
            first = self.place.machine * self.place.local_world
            failures = [
                failure_of(first + local, code, Path(errors) / f"{local}.json", self.log_of(first + local))
                for local, code in codes.items()
                if code
            ]
            return root_cause(failures)

    def log_of(self, rank: int) -> Path:
        """Where a worker's output goes."""
        return self.logs / f"rank-{rank}.log"

    def _watch(self, workers: dict[int, Any]) -> dict[int, int]:
        """Wait for the workers; the exit codes of those that ended by themselves."""
        passed_on = 0
        codes: dict[int, int] = {}
        deadline: float | None = None
        while len(codes) < len(workers) and not (deadline and time.monotonic() > deadline):
            if self.asked > passed_on:
                passed_on += 1
                self._pass_on(workers, again=passed_on > 1)
            codes = {local: code for local, worker in workers.items() if (code := worker.proc.poll()) is not None}
            if any(codes.values()):
                deadline = deadline or time.monotonic() + GRACE
            elif self.place.machines > 1 and (told := self.meeting.heard("failed")):
                raise RunError(told)
            time.sleep(PERIOD)
        return codes

    @staticmethod
    def _pass_on(workers: dict[int, Any], *, again: bool) -> None:
        """Ctrl-C: the workers finish their step and save; the second time all ends at once."""
        if again:
            raise KeyboardInterrupt
        for worker in workers.values():
            if worker.proc.poll() is None:
                os.kill(worker.proc.pid, signal.SIGINT)

    def _context(self, errors: Path) -> Any:
        from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs, SubprocessContext

        count, first = self.place.local_world, self.place.machine * self.place.local_world
        self.logs.mkdir(parents=True, exist_ok=True)
        outputs = {local: str(self.log_of(first + local)) for local in range(count)}
        shown = {0: outputs[0]} if self.place.machine == 0 else {}

        class Logs(LogsSpecs):
            """One file for each worker; that of the first is shown as it grows."""

            def reify(self, envs: dict[int, dict[str, str]]) -> Any:
                del envs
                nowhere = dict.fromkeys(range(count), os.devnull)
                files = {local: str(errors / f"{local}.json") for local in range(count)}
                return LogsDest(nowhere, outputs, {}, shown, files)

            @property
            def root_log_dir(self) -> str:
                return str(Path(outputs[0]).parent)

        return SubprocessContext(
            name="",
            entrypoint=sys.executable,
            args=dict.fromkeys(range(count), ("-P", "-m", WORKER)),
            envs={local: self._environment(local, errors) for local in range(count)},
            logs_specs=Logs(),
            log_line_prefixes=dict.fromkeys(range(count), ""),
        )

    def _environment(self, local: int, errors: Path) -> dict[str, str]:
        place = self.place
        alone = place.machines == 1
        values = {
            "RANK": place.machine * place.local_world + local,
            "WORLD_SIZE": place.world,
            "LOCAL_RANK": local,
            "LOCAL_WORLD_SIZE": place.local_world,
            "GROUP_RANK": place.machine,
            "MASTER_ADDR": self.address,
            "MASTER_PORT": self.meeting.port,
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_ERROR_FILE": errors / f"{local}.json",
            "PYTHONUNBUFFERED": 1,
            OWN_LOG: os.getpid(),
            VARIABLE: self.start.text(),
        }
        if "OMP_NUM_THREADS" not in os.environ:
            values["OMP_NUM_THREADS"] = max(1, _cores() // place.local_world)
        if alone and "GLOO_SOCKET_IFNAME" not in os.environ and (loopback := _loopback()):
            values["GLOO_SOCKET_IFNAME"] = loopback  # the name of the machine may lead nowhere
        return {key: str(value) for key, value in values.items()}

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Torch's own handlers end everything at once; these are put back over them in :meth:`_listen`."""
        self._main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
        before = {number: signal.getsignal(number) for number in numbers}
        try:
            yield
        finally:
            if self._main:
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _listen(self) -> None:
        if self._main:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked += 1


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _loopback() -> str | None:
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name in ("lo", "lo0")), None)


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """What torch logs about the processes is said in other words here."""
    logger = logging.getLogger("torch.distributed.elastic")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
