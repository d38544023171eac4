"""What a service was asked and what it costs: tokens by model, prices, and a budget that is never exceeded."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """What a million tokens cost, in whatever currency the service bills.

    Attributes:
        prompt: tokens that are read.
        answer: tokens that are written.
    """

    prompt: float = 0.0
    answer: float = 0.0

    def of(self, prompt: int, answer: int) -> float:
        """What so many tokens cost."""
        return (prompt * self.prompt + answer * self.answer) / MILLION


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer.

    Attributes:
        prompt: tokens read.
        answer: tokens written.
        guessed: whether the service did not say, and they are guessed from the text.
    """

    prompt: int
    answer: int
    guessed: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """What requests will take, before one is made.

    Attributes:
        requests: how many.
        prompt: their tokens, guessed from the text.
        answer: tokens of the answers if each is as long as it may be.
        cost: of both; None without a price.
    """

    requests: int
    prompt: int
    answer: int
    cost: float | None


def guess_tokens(text: str) -> int:
    """About how many tokens a text has: a quarter of its ASCII characters, and one for each other character."""
    plain = sum(character < "\x80" for character in text)
    return -(-plain // 4) + len(text) - plain


def most_tokens(text: str) -> int:
    """More tokens than a text can have: byte-level tokenizers never need more than one for each byte."""
    return len(text.encode("utf-8", "replace"))


class Ledger:
    """Counts tokens of one model; used by many threads.

    Args:
        model: its name, for the summary.
        price: None when it is not known.
        budget: most that may be spent; None for no limit.
    """

    def __init__(self, model: str, price: Price | None = None, budget: float | None = None) -> None:
        self.model, self.price, self.budget = model, price, budget
        self.requests = self.cached = self.prompt = self.answer = self.guessed = 0
        self._held = 0.0
        self._lock = threading.Lock()

    @property
    def cost(self) -> float | None:
        """What was spent so far; None without a price."""
        return None if self.price is None else self.price.of(self.prompt, self.answer)

    def hold(self, most: float) -> bool:
        """Set aside what a request may cost at most; False when the budget has not that much left."""
        with self._lock:
            if self.budget is not None and (self.cost or 0.0) + self._held + most > self.budget:
                return False
            self._held += most
            return True

    def settle(self, most: float, usage: Usage | None) -> None:
        """Give back what was set aside, and count what was used: None for nothing."""
        with self._lock:
            self._held -= most
            if usage is not None:
                self.requests += 1
                self.prompt += usage.prompt
                self.answer += usage.answer
                self.guessed += usage.guessed

    def reuse(self) -> None:
        """Count an answer from the cache."""
        with self._lock:
            self.cached += 1

    def estimate(self, sizes: Iterable[tuple[str, int]]) -> Estimate:
        """What requests will take: for each its text and the longest answer in tokens."""
        counted = [(guess_tokens(text), longest) for text, longest in sizes]
        prompt, answer = sum(size for size, _ in counted), sum(longest for _, longest in counted)
        return Estimate(len(counted), prompt, answer, None if self.price is None else self.price.of(prompt, answer))

    def summary(self) -> str:
        """One line: requests, tokens, cost, and what the cache saved."""
        parts = [f"{self.model}: {self.requests} answers, {self.prompt} tokens in, {self.answer} out"]
        if self.cached:
            parts.append(f"{self.cached} more from the cache")
        if self.cost is not None:
            parts.append(f"cost {self.cost:.4f}" + (f" of {self.budget:g}" if self.budget is not None else ""))
        if self.guessed:
            parts.append(f"tokens of {self.guessed} guessed, because the service does not count them")
        return "; ".join(parts)
