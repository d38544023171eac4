"""Where the processes of a training meet before the process group exists: nothing here times out.

One process holds a small key-value store and the others connect to it. A process group gives up when a peer is
silent for `ddp_timeout`; waiting for rows to be tokenised, or for another machine to come up, may take longer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from danlu.core.console import note
from danlu.core.errors import RunError
from danlu.core.ranks import ranks

PERIOD = 0.1
"""Seconds between two looks at the store."""

LINGER = 5
"""Seconds for others to hear, or to say, a last word."""

PATIENCE = 60
"""Seconds after which waiting is said once more."""


class Meeting:
    """The store, as one process sees it.

    Args:
        store: a :class:`torch.distributed.TCPStore`.
        prefix: of all keys, for everything of one launch.

    Attributes:
        port: where it listens.
    """

    def __init__(self, store: Any, prefix: str = "danlu") -> None:
        self.store, self.prefix = store, prefix
        self.port = int(store.port)

    def say(self, key: str, value: str = "yes") -> None:
        """Tell everybody."""
        self.store.set(f"{self.prefix}/{key}", value)

    def is_first(self, key: str) -> bool:
        """Whether this is the first process that asks so, among all that still reach the store."""
        try:
            return int(self.store.add(f"{self.prefix}/{key}", 1)) == 1
        except RuntimeError:
            return True

    def heard(self, key: str) -> str | None:
        """What somebody said, or None when nobody has.

        Raises:
            RunError: when the process that holds the store is gone.
        """
        try:
            if not self.store.check([f"{self.prefix}/{key}"]):
                return None
            return str(self.store.get(f"{self.prefix}/{key}").decode())
        except RuntimeError as error:
            raise RunError("the first process of the training is gone", hint="Its own message says why.") from error

    def say_last(self, key: str, value: str) -> None:
        """Tell everybody as this process leaves, if anybody is still there."""
        try:
            if self.heard(key) is None:
                self.say(key, value)
                time.sleep(LINGER)  # the store goes with the process that holds it
        except (RuntimeError, RunError):
            return

    def heard_soon(self, key: str) -> str | None:
        """What somebody says within the next seconds, or None."""
        deadline = time.monotonic() + LINGER
        while (value := self.heard(key)) is None and time.monotonic() < deadline:
            time.sleep(PERIOD)
        return value

    def wait(self, keys: Iterable[str], *, what: str) -> list[str]:
        """Wait until somebody has said all of these; or ``failed``.

        Args:
            keys: to wait for.
            what: what is awaited, in words.

        Raises:
            RunError: when another process failed, or the one that holds the store is gone.
        """
        found: list[str] = []
        told = time.monotonic()
        for key in keys:
            while (value := self.heard(key)) is None:
                if failed := self.heard("failed"):
                    raise RunError(failed)
                if time.monotonic() - told > PATIENCE:
                    told = time.monotonic()
                    note(f"waiting for {what}")
                time.sleep(PERIOD)
            found.append(value)
        return found


def host_meeting(port: int = 0) -> Meeting:
    """Hold a store on this machine.

    Args:
        port: 0 finds a free one.

    Raises:
        RunError: when the port is taken.
    """
    from torch.distributed import DistNetworkError, TCPStore

    try:
        store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, multi_tenant=True)
    except (DistNetworkError, RuntimeError) as error:
        raise RunError(
            f"port {port} cannot be listened on; another process may have it",
            where="master_port",
            hint="Choose another one.",
        ) from error
    return Meeting(store)


def join_meeting(host: str, port: int, *, prefix: str = "danlu") -> Meeting:
    """Connect to the store of another process, which may come up later.

    Raises:
        RunError: when the name of the host is unknown.
    """
    import socket

    from torch.distributed import DistNetworkError, DistStoreError, TCPStore

    told = time.monotonic()
    while True:
        try:
            socket.create_connection((host, port), timeout=PATIENCE).close()
            return Meeting(TCPStore(host, port, is_master=False, timeout=timedelta(seconds=PATIENCE)), prefix)
        except socket.gaierror as error:
            raise RunError(f"there is no machine {host}", where="master_addr") from error
        except (OSError, DistNetworkError, DistStoreError):
            if time.monotonic() - told > PATIENCE:
                told = time.monotonic()
                note(f"waiting for the first machine at {host}:{port}")
            time.sleep(1)


def meeting_of_ranks() -> Meeting:
    """The meeting of processes that torchrun, or something like it, has started."""
    host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    prefix = f"danlu/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if ranks().rank == 0 and not agent:
        held = host_meeting(port)
        return Meeting(held.store, prefix)
    return join_meeting(host, port, prefix=prefix)
