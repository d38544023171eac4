"""Several processes that train together, forked from this one: what torchrun starts, without loading torch again."""

from __future__ import annotations

import os
import random
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
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
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            _become(rank, count, port, log)
            code = 1
            try:
                function(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _become(rank: int, count: int, port: int, log: Path) -> None:
    import torch

    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(1)
    stream = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.stdout = sys.stderr = os.fdopen(stream, "w", buffering=1)
