"""Engines without a model: what they answer is known beforehand. For tests, and to try a benchmark's files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from danlu.data.schema import Conversation
from danlu.engine.protocol import Completion, FinishReason, Prompt, Request, Scored, ScoreRequest

Known = Callable[[str, Prompt], str]
"""What is answered to a request, by its key and prompt."""

SURE = 0.97
"""Probability of the continuation that is preferred; the others share the rest."""


class MockEngine:
    """Answers what a function says, and scores highest the continuation that is the same but for white space.

    Args:
        known: the answer to a request.

    Attributes:
        asked: keys of the requests so far, in their order.
    """

    def __init__(self, known: Known) -> None:
        self.known = known
        self.asked: list[str] = []

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Answer each request at once; a word counts as a token."""
        for request in requests:
            self.asked.append(request.key)
            words = self.known(request.key, request.prompt).split(" ")
            kept = words[: request.options.max_new_tokens]
            reason: FinishReason = "stop" if len(kept) == len(words) else "length"
            yield Completion(request.key, " ".join(kept), tuple(range(len(kept))), reason, self.length(request.prompt))

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored]:
        """Score each request at once. Where no continuation is the answer, all are equally likely."""
        for request in requests:
            self.asked.append(request.key)
            answer = self.known(request.key, request.prompt).strip()
            same = [isinstance(text, str) and text.strip() == answer for text in request.continuations]
            count = len(same)
            if count == 1 or not any(same):
                shares = [1 / count] * count
            else:
                shares = [SURE if is_it else (1 - SURE) / (count - 1) for is_it in same]
            logs = tuple(math.log(share) for share in shares)
            yield Scored(request.key, logs, (1,) * count, tuple(same), self.length(request.prompt))

    def length(self, prompt: Prompt) -> int:
        """Characters of a prompt, which stand for its tokens."""
        if isinstance(prompt, Conversation):
            return sum(len(message.content) for message in prompt.messages)
        return len(prompt)


def constant(letter: str) -> MockEngine:
    """An engine that always answers the same."""
    return MockEngine(lambda key, prompt: letter)


def oracle(answers: dict[str, str]) -> MockEngine:
    """An engine that knows the answer to each key; to others it answers nothing."""
    return MockEngine(lambda key, prompt: answers.get(key, ""))


def echo() -> MockEngine:
    """An engine that answers with the end of the prompt: the text, or the last turn."""

    def last(key: str, prompt: Prompt) -> str:
        if isinstance(prompt, Conversation):
            return prompt.messages[-1].content
        return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))

    return MockEngine(last)
