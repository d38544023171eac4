"""Text in, text out: the one protocol that local, remote and served models share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from danlu.core.errors import UsageError
from danlu.data.schema import Conversation

FinishReason: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How one answer is generated. Greedy unless told otherwise.

    Attributes:
        do_sample: sample instead of taking the likeliest token.
        temperature: logits are divided by it before sampling.
        top_p: sample from the smallest set of tokens with this probability.
        top_k: sample from at most this many tokens; 0 for all.
        num_beams: beams of a beam search; 1 for none.
        max_new_tokens: longest answer, in tokens.
        repetition_penalty: above 1, tokens that were seen become less likely
            (Keskar et al., 2019, arXiv:1909.05858).
        stop: texts that end an answer; they are not part of it.
        seed: of sampling; with the request's key it decides the answer, whatever else is in the batch.

    Raises:
        UsageError: for values outside their range.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    num_beams: int = 1
    max_new_tokens: int = 512
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 42

    def __post_init__(self) -> None:
        rules = {
            "temperature": self.temperature > 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
            "num_beams": self.num_beams >= 1,
            "max_new_tokens": self.max_new_tokens >= 1,
            "repetition_penalty": self.repetition_penalty > 0,
            "stop": "" not in self.stop,
        }
        for name, fine in rules.items():
            if not fine:
                raise UsageError(f"{name} cannot be {getattr(self, name)!r}", where="generation options")
        if self.num_beams > 1 and self.do_sample:
            raise UsageError("beam search and sampling exclude each other", where="generation options")


GREEDY = GenerationOptions()

Prompt: TypeAlias = Conversation | str | tuple[int, ...]
"""A conversation, rendered by the template with the header of the answer; a plain text to continue, with whatever the
tokenizer writes in front of a text; or token ids, as they are."""


@dataclass(frozen=True, slots=True)
class Request:
    """Something to answer.

    Attributes:
        key: comes back with the answer; unique among the requests of one call.
        prompt: see :data:`Prompt`.
        options: how to answer.
    """

    key: str
    prompt: Prompt
    options: GenerationOptions = GREEDY


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer.

    Attributes:
        key: of the request.
        text: without control tokens and stop texts.
        tokens: ids that were generated, with the token that ended the answer; empty where a service does not tell.
        finish_reason: ``stop`` (the model ended it, or a stop text came) or ``length``.
        prompt_tokens: length of the prompt that the model saw.
        cut_tokens: tokens left out at the start of a prompt that was too long.
    """

    key: str
    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    cut_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Continuations whose log-likelihoods are asked for.

    Attributes:
        key: comes back with the scores; unique among the requests of one call.
        prompt: what stands before every continuation.
        continuations: texts that follow the prompt directly, at least one; none is empty. Prompt and continuation are
            tokenised as one text. What is scored are the tokens behind those that all joined texts and the prompt
            alone begin with, so that tokens which merge across the seam count and every continuation is measured
            from the same place. Behind token ids a continuation may be token ids too, which are scored as they are.
        per_token: also give the log-probability of each token.
    """

    key: str
    prompt: Prompt
    continuations: tuple[str | tuple[int, ...], ...]
    per_token: bool = False


@dataclass(frozen=True, slots=True)
class Scored:
    """Log-likelihoods of continuations, in the order of the request.

    Attributes:
        key: of the request.
        log_probs: natural logarithm of the probability of each continuation, the sum over its tokens.
        tokens: how many tokens of each were scored.
        greedy: whether each of these tokens is the likeliest at its place.
        prompt_tokens: length of the prompt that the model saw.
        cut_tokens: tokens left out at the start of a prompt that was too long.
        per_token: log-probability of each token, if asked for.
    """

    key: str
    log_probs: tuple[float, ...]
    tokens: tuple[int, ...]
    greedy: tuple[bool, ...]
    prompt_tokens: int
    cut_tokens: int = 0
    per_token: tuple[tuple[float, ...], ...] | None = None


def request_seed(seed: int, key: str, *, bits: int = 63) -> int:
    """The seed of one request, from that of the options and its key."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - bits)


class Engine(Protocol):
    """Answers and scores requests."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield a completion for every request, each as soon as it is finished, in any order."""

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored]:
        """Yield scores for every request, each as soon as they are known, in any order.

        Raises:
            UsageError: when the engine cannot see log-probabilities (most chat services).
        """


class Renderer(Protocol):
    """Turns conversations into prompts; :class:`danlu.data.templates.Template` is one.

    It may have a ``lead``: white space that the model writes before the text of an answer, which is left out of it.
    """

    stop_ids: frozenset[int]

    def prompt(self, conversation: Conversation) -> list[int]:
        """Ids of the conversation with the header of the answer to come."""

    def continued(self, prompt: Conversation | str, texts: Sequence[str]) -> list[list[int]]:
        """Ids of a prompt with each of some texts directly behind it; with "" those of the prompt alone."""

    def content_ids(self, text: str) -> list[int]:
        """Ids of a text that stands behind other tokens."""
