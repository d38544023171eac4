"""HTTP with patience: JSON posts and event streams, asked again when that may help.

The engine and the scoring servers of :mod:`danlu.tune.online.remote_reward` ask through it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from danlu.core.console import warn
from danlu.core.errors import UsageError
from danlu.engine.remote.failures import REDIRECTS, Passing, RemoteError, Reply, refused, shown
from danlu.engine.remote.pace import Clock, Pace, Patience, retry_after

LONGEST_HOLD = 600.0
"""Seconds; a service that wants a longer pause than this is not waited for."""

NEAR = ("127.0.0.1", "::1", "localhost")


def checked_address(url: str, example: str = "http://host:8000/v1") -> str:
    """An http(s) address without a final slash.

    Raises:
        UsageError: when it is none, or carries a password (which would be shown and logged).
    """
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        fine = False
    if not fine:
        raise UsageError("this is no address of a service", where=url, hint=f"For instance {example}.")
    if parts.username or parts.password:
        raise UsageError(
            "an address with a password in it would end up in logs",
            where=f"{parts.scheme}://{parts.hostname}",
            hint="Give the address without it, and the key in an environment variable.",
        )
    return url.rstrip("/")


class Client:
    """Asks one host; may be used by many threads.

    Args:
        key: sent as ``Authorization: Bearer …``; kept in memory only.
        patience: how long and how often.
        pace: how fast.
        clock: time.
        hints: status → what to do about it.
        again: what is said of a failure that is asked again; shown with the address in front.
    """

    def __init__(
        self,
        key: str | None = None,
        *,
        patience: Patience | None = None,
        pace: Pace | None = None,
        clock: Clock | None = None,
        hints: Mapping[int, str] = REDIRECTS,
        again: Callable[[str], None] = warn,
    ) -> None:
        self.patience, self.hints = patience or Patience(), hints
        self._clock = clock or Clock()
        self._pace = pace or Pace(clock=self._clock)
        self._headers = {"Accept": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._key, self._again = key, again
        self._http: dict[bool, Any] = {}

    def post(self, url: str, body: Any, *, tokens: int = 0) -> Any:
        """The JSON that a service answers.

        Args:
            url: where to post.
            body: sent as JSON.
            tokens: what the request may take of the tokens a minute.

        Raises:
            RemoteError: when it refuses, or gives no answer after all attempts.
        """
        return self._patiently(url, lambda: self._post(url, body), tokens)

    def events(self, url: str, body: Any, *, tokens: int = 0) -> Iterator[Any]:
        """The JSON events of a stream (server-sent events up to ``[DONE]``), as they come; asked once.

        Raises:
            Passing: when it breaks off or is refused for now; see :meth:`patiently`.
            RemoteError: when it is refused.
        """
        self._pace.enter(tokens)
        with self._sent(url, body) as response:
            for line in response.iter_lines():
                if not line.startswith("data:"):
                    continue
                data = line[5:].strip()
                if data == "[DONE]":
                    return
                yield _parsed(data.encode(), url)

    def patiently(self, url: str, failure: Passing, attempt: int) -> None:
        """Wait after failed attempt number ``attempt`` (from 0), or give up.

        Raises:
            RemoteError: after the last attempt.
        """
        told, patience = failure.told, self.patience
        tired = failure.wait is not None and failure.wait > LONGEST_HOLD
        if attempt >= patience.retries or tired:
            hint = f"It was asked {attempt + 1} times, waiting {patience.timeout:g} s each; see whether it runs."
            if tired:
                hint = f"It wants to be left alone for {failure.wait:.0f} s; run the same command later."
            raise RemoteError(told, where=url, hint=hint, reply=failure.reply)
        pause = patience.pause(attempt, failure.wait)
        if failure.wait:
            self._pace.hold(failure.wait)
        self._again(f"{url}: {told}; asking again in {pause:.3g} s")
        self._clock.sleep(pause)

    def close(self) -> None:
        """Give up connections."""
        for http in self._http.values():
            http.close()
        self._http.clear()

    def _patiently(self, url: str, ask: Callable[[], Any], tokens: int) -> Any:
        attempt = 0
        while True:
            self._pace.enter(tokens)
            try:
                return ask()
            except Passing as failure:
                self.patiently(url, failure, attempt)
                attempt += 1

    def _post(self, url: str, body: Any) -> Any:
        with self._sent(url, body) as response:
            return _parsed(response.read(), url)

    @contextmanager
    def _sent(self, url: str, body: Any) -> Iterator[Any]:
        import httpx2

        data = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        headers = {**self._headers, "Content-Type": "application/json"}
        http = self._connections(urlsplit(url).hostname in NEAR)
        try:
            with http.stream("POST", url, content=data, headers=headers) as response:
                if not response.is_success:
                    raise self._failure(url, Reply(response.status_code, response.read(), response.headers))
                yield response
        except httpx2.TimeoutException as error:
            raise Passing("the server gave no answer (timed out)") from error
        except httpx2.HTTPError as error:  # no connection, half an answer, not HTTP
            told = " ".join(str(error).split()) or type(error).__name__
            raise Passing(f"the server gave no answer ({told})") from error

    def _connections(self, near: bool) -> Any:
        """Connections of this machine (never through a proxy) or of others, opened when first needed."""
        import httpx2

        if near not in self._http:
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
            self._http[near] = httpx2.Client(timeout=self.patience.timeout, limits=limits, trust_env=not near)
        return self._http[near]

    def _failure(self, url: str, reply: Reply) -> Exception:
        told = self._without_key(f"the server answered {reply.status}: {reply.words}")
        if reply.passing:
            return Passing(told, retry_after((reply.headers or {}).get("retry-after"), time.time()), reply)
        return refused(reply, told, url, self.hints)

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "…") if self._key else text


def _parsed(body: bytes, url: str) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise RemoteError(f"the server's answer is not JSON: {shown(body)}", where=url) from error
