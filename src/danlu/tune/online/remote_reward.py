"""A reward that a server computes.

It is sent ``POST`` with JSON, ``{"prompts": [...], "answers": [...], "references": [...]}`` (a prompt is a list of
messages, a reference text or null), and answers ``{"scores": [...]}``, one finite number for each answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from danlu.core.errors import ConfigError, UsageError
from danlu.core.workspace import reward_token
from danlu.data.formats.openai import write_message
from danlu.engine.remote.client import Client, checked_address
from danlu.engine.remote.failures import REDIRECTS, RemoteError, shown
from danlu.engine.remote.pace import Clock, Patience
from danlu.tune.online.samples import RewardError, Sample, checked


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
        try:
            self.url = checked_address(url, "http://host:8000/score")
        except UsageError as error:
            raise ConfigError(error.what, where=error.where, hint=error.hint) from error
        if timeout <= 0 or retries < 0 or wait < 0 or batch_size < 1:
            raise ConfigError("timeout and batch_size are above 0, retries and wait are not below", where=url)
        self.batch_size = batch_size
        self._client = Client(
            reward_token(),
            patience=Patience(timeout, retries, wait, jitter=False),
            clock=Clock(sleep=sleep),
            hints=HINTS,
        )

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
        try:
            answer = self._client.post(self.url, body)
        except RemoteError as error:
            raise RewardError(error.what, where=error.where, hint=error.hint) from error
        if not isinstance(answer, dict) or "scores" not in answer:
            raise RewardError(
                f"the server's answer has no scores: {shown(json.dumps(answer).encode())}",
                where=self.url,
                hint='It has to be {"scores": [...]} with one number for each answer.',
            )
        return answer["scores"]


HINTS = {
    401: "Set DANLU_REWARD_TOKEN to the server's token.",
    403: "Set DANLU_REWARD_TOKEN to a token that is allowed to score.",
    404: "Check the path of the address.",
    **REDIRECTS,
}
