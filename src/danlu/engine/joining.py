"""Requests for scores as token ids: what stands before, and what is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from danlu.core.errors import UsageError
from danlu.engine.protocol import Prompt, Renderer, Scored, ScoreRequest


@dataclass(frozen=True, slots=True)
class Joined:
    """A request whose prompt and continuations were tokenised together.

    Attributes:
        request: what was asked.
        context: tokens that all continuations follow, at least one.
        branches: tokens of each continuation, at least one.
        cut: tokens left out at the start of the context.
    """

    request: ScoreRequest
    context: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    cut: int = 0

    def scored(self, log_probs: Sequence[Sequence[float]], greedy: Sequence[Sequence[bool]]) -> Scored:
        """The answer, from the log-probability of each token of each branch and whether it is the likeliest."""
        return Scored(
            key=self.request.key,
            log_probs=tuple(map(sum, log_probs)),
            tokens=tuple(map(len, self.branches)),
            greedy=tuple(map(all, greedy)),
            prompt_tokens=len(self.context),
            cut_tokens=self.cut,
            per_token=tuple(map(tuple, log_probs)) if self.request.per_token else None,
        )


def join(request: ScoreRequest, renderer: Renderer, start: int, room: int) -> Joined:
    """Tokenise a request.

    Args:
        request: what is asked.
        renderer: turns texts and conversations into ids.
        start: token that stands in front where a prompt has none.
        room: most tokens that the model can see; the beginning of what is longer is left out.

    Raises:
        UsageError: for a request without continuations, or with one that is empty or longer than the room.
    """
    where = f"request {request.key!r}"
    if not request.continuations or not all(request.continuations):
        raise UsageError("there is nothing to score: a request needs continuations, and none may be empty", where=where)
    alone, *whole = _ids(request.prompt, ("", *request.continuations), renderer)
    if not shared(alone, *whole):
        whole, alone = [[start, *ids] for ids in whole], [start, *alone]
    common = shared(alone, *whole)
    branches = tuple(tuple(ids[common:]) for ids in whole)
    if not all(branches):
        text = request.continuations[branches.index(())]
        raise UsageError(f"the tokenizer makes no tokens of the continuation {text!r}", where=where)
    cut = max(common + max(map(len, branches)) - 1 - room, 0)  # the last token is not read, only foretold
    if cut >= common:
        raise UsageError(f"a continuation is longer than the model's context of {room} tokens", where=where)
    return Joined(request, tuple(whole[0][cut:common]), branches, cut)


def _ids(prompt: Prompt, texts: Sequence[str], renderer: Renderer) -> list[list[int]]:
    if isinstance(prompt, tuple):
        return [[*prompt, *(renderer.content_ids(text) if text else ())] for text in texts]
    return renderer.continued(prompt, texts)


def shared(first: Sequence[Any], *others: Sequence[Any]) -> int:
    """How many items all sequences begin with."""
    length = min(map(len, (first, *others)))
    return next((place for place in range(length) if any(row[place] != first[place] for row in others)), length)
