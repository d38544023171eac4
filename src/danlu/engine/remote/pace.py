"""How fast a service is asked: requests and tokens a minute, and pauses that it asks for."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often to ask again.

    Attributes:
        timeout: seconds to wait for an answer.
        retries: how often a request is made again.
        wait: seconds before the first of them, doubled each time (plus up to half of it at random with ``jitter``).
        longest: most seconds between two.
        jitter: spread the requests that failed together, so that they do not come back together.
    """

    timeout: float = 120.0
    retries: int = 6
    wait: float = 0.5
    longest: float = 60.0
    jitter: bool = True

    def pause(self, attempt: int, asked: float | None = None) -> float:
        """Seconds before attempt ``attempt + 1``; ``asked`` is what the service wants, and is never shortened."""
        pause = min(self.wait * 2**attempt, self.longest)
        if self.jitter:
            pause *= 1 + random.random() / 2
        return max(pause, asked or 0.0)


def retry_after(text: str | None, now: float) -> float | None:
    """Seconds that a ``Retry-After`` header asks for: a number, or a date (RFC 9110, 10.2.3); None for neither."""
    if not text:
        return None
    try:
        return max(float(text), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(text).timestamp() - now, 0.0)
    except (TypeError, ValueError):
        return None


@dataclass(slots=True)
class Clock:
    """Time, for tests to replace.

    Attributes:
        now: seconds since any moment.
        sleep: waits so many seconds.
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(slots=True)
class _Bucket:
    """So much a minute: full at the start, refilled evenly; one request may take it below zero."""

    rate: float
    level: float = field(init=False)
    seen: float | None = None

    def __post_init__(self) -> None:
        self.level = self.rate

    def wait(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` (at most a full bucket) is there."""
        if self.seen is not None:
            self.level = min(self.rate, self.level + (now - self.seen) * self.rate / MINUTE)
        self.seen = now
        return max(min(amount, self.rate) - self.level, 0.0) * MINUTE / self.rate


class Pace:
    """Lets requests pass as fast as the limits allow; shared by all threads.

    Args:
        requests: a minute; None for no limit.
        tokens: a minute, prompts and longest answers together; None for no limit.
        clock: time.
    """

    def __init__(self, requests: float | None = None, tokens: float | None = None, clock: Clock | None = None) -> None:
        self._requests = _Bucket(requests) if requests else None
        self._tokens = _Bucket(tokens) if tokens else None
        self._clock = clock or Clock()
        self._until = 0.0
        self._lock = threading.Lock()

    def enter(self, tokens: int) -> None:
        """Wait until a request of so many tokens may go."""
        while (seconds := self._take(tokens)) > 0:
            self._clock.sleep(seconds)

    def hold(self, seconds: float) -> None:
        """Let nothing pass for so long: the service asked all of us to wait, not only one request."""
        with self._lock:
            self._until = max(self._until, self._clock.now() + seconds)

    def _take(self, tokens: int) -> float:
        """Take what a request needs, or the seconds to wait for it."""
        with self._lock:
            now = self._clock.now()
            wanted = [(self._requests, 1.0), (self._tokens, float(tokens))]
            buckets = [(bucket, amount) for bucket, amount in wanted if bucket is not None]
            seconds = max([self._until - now, *(bucket.wait(amount, now) for bucket, amount in buckets)])
            if seconds <= 1e-9:
                for bucket, amount in buckets:
                    bucket.level -= amount
                return 0.0
            return seconds
