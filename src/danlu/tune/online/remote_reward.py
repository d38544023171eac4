"""A reward that a server computes.

It is sent ``POST`` with JSON, ``{"prompts": [...], "answers": [...], "references": [...]}`` (a prompt is a list of
messages, a reference text or null), and answers ``{"scores": [...]}``, one finite number for each answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from danlu.core.console import warn
from danlu.core.errors import ConfigError
from danlu.core.workspace import reward_token
from danlu.data.formats.openai import write_message
from danlu.tune.online.samples import RewardError, Sample, checked

TOO_MANY = 429


class _NoRedirects(HTTPRedirectHandler):
    """A redirected POST would lose its body, and the token would travel to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class RemoteReward:
    """Asks a server for scores; a token in ``DANLU_REWARD_TOKEN`` is sent as ``Authorization: Bearer …``.

    Args:
        url: where to post.
        timeout: seconds to wait for an answer.
        retries: how often a request is made again when the server cannot be reached, is busy (429) or fails (5xx).
        wait: seconds before the first of them, doubled each time.
        batch_size: most answers of a request.
        sleep: waits; given by tests.

    Raises:
        ConfigError: when one of them makes no sense.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 60.0,
        retries: int = 4,
        wait: float = 0.5,
        batch_size: int = 64,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                "this is no address of a scoring server", where=url, hint="For instance http://host:8000/score."
            )
        if timeout <= 0 or retries < 0 or wait < 0 or batch_size < 1:
            raise ConfigError("timeout and batch_size are above 0, retries and wait are not below", where=url)
        self.url, self.timeout, self.retries, self.wait = url, timeout, retries, wait
        self.batch_size, self._sleep = batch_size, sleep
        self._opener = build_opener(_NoRedirects)

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """See :class:`danlu.tune.online.samples.Reward`."""
        scores: list[float] = []
        for start in range(0, len(samples), self.batch_size):
            part = samples[start : start + self.batch_size]
            scores += checked(self.url, self._ask(part), part)
        return scores

    def _ask(self, samples: Sequence[Sample]) -> Any:
        body = {
            "prompts": [[write_message(message) for message in sample.prompt.messages] for sample in samples],
            "answers": [sample.answer for sample in samples],
            "references": [sample.reference for sample in samples],
        }
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token := reward_token():
            headers["Authorization"] = f"Bearer {token}"
        data = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        text = self._send(Request(self.url, data=data, headers=headers, method="POST"))
        try:
            answer = json.loads(text)
        except ValueError as error:
            raise RewardError(f"the server's answer is not JSON: {_shown(text)}", where=self.url) from error
        if not isinstance(answer, dict) or "scores" not in answer:
            raise RewardError(
                f"the server's answer has no scores: {_shown(text)}",
                where=self.url,
                hint='It has to be {"scores": [...]} with one number for each answer.',
            )
        return answer["scores"]

    def _send(self, request: Request) -> bytes:
        for attempt in range(self.retries + 1):
            try:
                with self._opener.open(request, timeout=self.timeout) as response:
                    return bytes(response.read())
            except HTTPError as error:
                with error:
                    told = f"the server answered {error.code}: {_shown(error.read())}"
                if error.code != TOO_MANY and error.code < 500:
                    raise RewardError(told, where=self.url, hint=_HINTS.get(error.code)) from error
            except (URLError, HTTPException, OSError) as error:  # no connection, no answer in time, half an answer
                told = f"the server gave no answer ({getattr(error, 'reason', None) or error or type(error).__name__})"
            if attempt < self.retries:
                pause = self.wait * 2**attempt
                warn(f"{self.url}: {told}; asking again in {pause:g} s")
                self._sleep(pause)
        raise RewardError(
            told,
            where=self.url,
            hint=f"It was asked {self.retries + 1} times, waiting {self.timeout:g} s each; see whether it runs.",
        )


_HINTS = {
    401: "Set DANLU_REWARD_TOKEN to the server's token.",
    403: "Set DANLU_REWARD_TOKEN to a token that is allowed to score.",
    404: "Check the path of the address.",
    **dict.fromkeys((301, 302, 303, 307, 308), "Give the address that it points to."),
}


def _shown(body: bytes) -> str:
    return " ".join(body[:2000].decode("utf-8", "replace").split())[:200] or "nothing"
