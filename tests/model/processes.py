"""Several processes that train together, forked from this one: what torchrun starts, without loading torch again."""

from __future__ import annotations

import os
import random
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any


def free_port() -> int:
    """A port that nobody listens on, outside of those that systems give to outgoing connections."""
    while True:
        port = random.randrange(20_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def together(count: int, function: Callable[[int], Any], log: Path) -> list[int]:
    """Run ``function(rank)`` in ``count`` processes, in the environment that torchrun gives; their exit codes.

    What they print, and their tracebacks, goes to ``log``.
    """
    port = free_port()

    def work(rank: int) -> None:
        _become(rank, count, port)
        function(rank)

    children = [Child(partial(work, rank), log) for rank in range(count)]
    return [child.wait() for child in children]


class Child:
    """A process forked from this one, which has everything imported.

    Args:
        function: what it does; its exit code is 0, 1 after an exception, or that of a SystemExit.
        log: where what it prints goes, and its traceback.
    """

    def __init__(self, function: Callable[[], Any], log: Path) -> None:
        self.log = log
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        code: Any = 1
        try:
            _print_to(log)
            function()
            code = 0
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def running(self) -> bool:
        """Whether it has not ended yet."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is None

    def wait(self) -> int:
        """Its exit code, which it has to give within minutes."""
        deadline = time.monotonic() + 300
        while self.running():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        assert self.code is not None
        return self.code


def _become(rank: int, count: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }


def _print_to(log: Path) -> None:
    import torch

    torch.set_num_threads(1)
    stream = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.stdout = sys.stderr = os.fdopen(stream, "w", buffering=1)
