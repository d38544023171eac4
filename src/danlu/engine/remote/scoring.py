"""Log-likelihoods from a service: completions that echo the prompt with its log-probabilities (vLLM and others do)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from danlu.core.errors import UsageError
from danlu.engine.joining import shared
from danlu.engine.protocol import Scored, ScoreRequest
from danlu.engine.remote.failures import RemoteError

PATH = "/completions"

HINT = "vLLM and llama-cpp-python show them, most chat services do not; ask for answers instead, or use a local model."


@dataclass(frozen=True, slots=True)
class Echo:
    """The tokens of a text: how each is written, its log-probability (NaN for the first), whether it is likeliest."""

    tokens: tuple[str, ...]
    log_probs: tuple[float, ...]
    greedy: tuple[bool, ...]


def body_of(text: str, model: str) -> dict[str, Any]:
    """A completion of one token (some services write at least one), with the prompt echoed."""
    words = {"max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}
    return {"model": model, "prompt": text, **words}


def read(value: Any, where: str) -> Echo:
    """The tokens of the text in a service's answer, without the one that it wrote.

    Raises:
        UsageError: when it shows no log-probabilities of the prompt.
    """
    choice = (value.get("choices") or [{}])[0] if isinstance(value, dict) else {}
    found = choice.get("logprobs") if isinstance(choice, dict) else None
    known = found.get("token_logprobs") if isinstance(found, dict) else None
    read_tokens = (value.get("usage") or {}).get("prompt_tokens") if isinstance(value, dict) else None
    if not known or not isinstance(found, dict):
        raise UsageError("the service shows no log-probabilities of the prompt", where=where, hint=HINT)
    count = read_tokens if isinstance(read_tokens, int) else len(known) - 1
    if not count <= len(known) <= count + 1:  # only the token that it wrote: nothing was echoed
        raise UsageError("the service does not echo the prompt", where=where, hint=HINT)
    try:
        log_probs = [math.nan if number is None else float(number) for number in known[:count]]
        top = [max((every or {"": -math.inf}).values()) for every in found["top_logprobs"][:count]]
        greedy = tuple(own >= best for own, best in zip(log_probs, top, strict=True))
        return Echo(tuple(map(str, found["tokens"][:count])), tuple(log_probs), greedy)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RemoteError("the log-probabilities have not the shape of a completion's", where=where) from error


def scored(request: ScoreRequest, echoes: Sequence[Echo], where: str) -> Scored:
    """Scores from the echoes of the prompt alone and of each joined text.

    Raises:
        RemoteError: when a token that counts has no log-probability (the first one of an empty prompt).
    """
    start = shared(*(echo.tokens for echo in echoes))
    joined = echoes[1:]
    parts = [echo.log_probs[start:] for echo in joined]
    if any(math.isnan(number) for part in parts for number in part):
        raise RemoteError(
            "the service gives the first token of a text no log-probability",
            where=where,
            hint="Put something before the continuations, a line end for instance.",
        )
    return Scored(
        request.key,
        tuple(math.fsum(part) for part in parts),
        tuple(map(len, parts)),
        tuple(all(echo.greedy[start:]) for echo in joined),
        len(echoes[0].tokens),
        per_token=tuple(parts) if request.per_token else None,
    )
